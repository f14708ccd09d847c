// Arithmetic that the U-Net (network.js) and the MLP (mlp.js) share.

const silu = (x) => x / (1 + Math.exp(-x));

// out (O, N) += weight (O, K) columns (K, N) in tiles of 4 x 4, which read and write less often.
// `columns` has rows of zeros up to a multiple of four.
function multiplied(weight, columns, out, channels, taps, size) {
  const w = new Float32Array(16);
  for (let o = 0; o < channels; o += 4) {
    const rows = Math.min(4, channels - o);
    const place = (i) => (o + i) * size;
    const unused = new Float32Array(size); // stands for rows beyond the last
    const [a, b, c, d] = [0, 1, 2, 3].map((i) =>
      i < rows ? out.subarray(place(i), place(i) + size) : unused
    );
    for (let tap = 0; tap < taps; tap += 4) {
      for (let i = 0; i < 16; i++) {
        const row = i >> 2;
        const at = tap + (i & 3);
        w[i] = row < rows && at < taps ? weight[(o + row) * taps + at] : 0;
      }
      const [a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3] = w;
      let q0 = tap * size;
      let q1 = q0 + size;
      let q2 = q1 + size;
      let q3 = q2 + size;
      for (let p = 0; p < size; p++) {
        const x0 = columns[q0++];
        const x1 = columns[q1++];
        const x2 = columns[q2++];
        const x3 = columns[q3++];
        a[p] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3;
        b[p] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3;
        c[p] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3;
        d[p] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3;
      }
    }
  }
}
