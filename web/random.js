// The random numbers of sample.py: the same seed gives the same noise (utils.NoisePerImage).

// BLAKE2b with a digest of 8 bytes (RFC 7693), as a BigInt in little-endian order: `derive_seed`
// of utils.py takes it of the Python tuple in words, and reads it in big-endian order.
function blake2b8(bytes) {
  const mask = (1n << 64n) - 1n;
  const iv = [
    0x6a09e667f3bcc908n, 0xbb67ae8584caa73bn, 0x3c6ef372fe94f82bn, 0xa54ff53a5f1d36f1n,
    0x510e527fade682d1n, 0x9b05688c2b3e6c1fn, 0x1f83d9abfb41bd6bn, 0x5be0cd19137e2179n,
  ];
  const order = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
  ];
  const rotated = (x, by) => ((x >> by) | (x << (64n - by))) & mask;
  const state = iv.slice();
  state[0] ^= 0x01010000n ^ 8n; // no key, 8 bytes
  const blocks = Math.max(1, Math.ceil(bytes.length / 128));
  for (let block = 0; block < blocks; block++) {
    const words = [];
    for (let i = 0; i < 16; i++) {
      let word = 0n;
      for (let j = 7; j >= 0; j--) {
        word = (word << 8n) | BigInt(bytes[128 * block + 8 * i + j] ?? 0);
      }
      words.push(word);
    }
    const v = [...state, ...iv];
    v[12] ^= BigInt(Math.min(bytes.length, 128 * (block + 1)));
    if (block === blocks - 1) v[14] ^= mask;
    const mix = (a, b, c, d, x, y) => {
      v[a] = (v[a] + v[b] + x) & mask;
      v[d] = rotated(v[d] ^ v[a], 32n);
      v[c] = (v[c] + v[d]) & mask;
      v[b] = rotated(v[b] ^ v[c], 24n);
      v[a] = (v[a] + v[b] + y) & mask;
      v[d] = rotated(v[d] ^ v[a], 16n);
      v[c] = (v[c] + v[d]) & mask;
      v[b] = rotated(v[b] ^ v[c], 63n);
    };
    for (let round = 0; round < 12; round++) {
      const s = order[round % 10];
      const m = (i) => words[s[i]];
      mix(0, 4, 8, 12, m(0), m(1));
      mix(1, 5, 9, 13, m(2), m(3));
      mix(2, 6, 10, 14, m(4), m(5));
      mix(3, 7, 11, 15, m(6), m(7));
      mix(0, 5, 10, 15, m(8), m(9));
      mix(1, 6, 11, 12, m(10), m(11));
      mix(2, 7, 8, 13, m(12), m(13));
      mix(3, 4, 9, 14, m(14), m(15));
    }
    for (let i = 0; i < 8; i++) state[i] ^= v[i] ^ v[i + 8];
  }
  return state[0];
}

// utils.derive_seed("image", seed, index), of which PyTorch's generator takes the low 32 bits.
function imageSeed(seed, index) {
  const text = new TextEncoder().encode(`('image', ${seed}, ${index})`);
  let little = blake2b8(text);
  let big = 0n;
  for (let i = 0; i < 8; i++) {
    big = (big << 8n) | (little & 0xffn);
    little >>= 8n;
  }
  return Number(big & 0xffffffffn);
}

// torch.Generator on the CPU: the Mersenne Twister MT19937 (Matsumoto & Nishimura 1998).
class Generator {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.next = 624;
    this.kept = null; // of `single`
  }

  // 32 random bits.
  random() {
    if (this.next === 624) {
      const s = this.state;
      for (let i = 0; i < 624; i++) {
        const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
        s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.next = 0;
    }
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  // torch.rand in float32: 24 random bits.
  uniform() {
    return (this.random() & 0xffffff) / 0x1000000;
  }

  // torch.rand in float64: 53 random bits of 64.
  uniform64() {
    const high = this.random() & 0x1fffff;
    return (high * 2 ** 32 + this.random()) / 2 ** 53;
  }

  // A number of torch.randn with fewer than 16: Box & Muller in float64. The second number of a
  // pair is kept for the next one.
  single() {
    const kept = this.kept;
    this.kept = null;
    if (kept !== null) return kept;
    const angle = 2 * Math.PI * this.uniform64();
    const radius = Math.sqrt(-2 * Math.log1p(-this.uniform64()));
    this.kept = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  // torch.randn in float32: of at least 16 numbers, Box & Muller in float32, in groups of 16.
  normal(count) {
    if (count < 16) return Float32Array.from({ length: count }, () => this.single());
    const x = new Float32Array(count);
    const fill = (start) => {
      for (let i = start; i < start + 8; i++) {
        const radius = Math.sqrt(-2 * Math.log(1 - x[i]));
        const angle = 2 * Math.PI * x[i + 8];
        x[i] = radius * Math.cos(angle);
        x[i + 8] = radius * Math.sin(angle);
      }
    };
    for (let i = 0; i < count; i++) x[i] = this.uniform();
    for (let i = 0; i + 16 <= count; i += 16) fill(i);
    if (count % 16) {
      for (let i = count - 16; i < count; i++) x[i] = this.uniform();
      fill(count - 16);
    }
    return x;
  }
}
