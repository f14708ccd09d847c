// The MLP of models/mlp.py for many points at once, and its gradient; the comments name the line of
// PyTorch that each step mirrors. A matrix is {data, rows, columns} with a row for each feature and
// a column for each point. Its data has rows of zeros up to a multiple of four, as `multiplied` of
// arithmetic.js needs them.

const OCTAVES = 5;

function matrix(rows, columns) {
  return { data: new Float32Array(4 * Math.ceil(rows / 4) * columns), rows, columns };
}

// The gradient of a matrix, of the shape of its data
function gradientOf(x) {
  x.gradient ??= new Float32Array(x.data.length);
  return x.gradient;
}

// out (K, O) = weight (O, K) transposed
function transposed(weight, rows, columns) {
  const out = new Float32Array(weight.length);
  for (let o = 0; o < rows; o++) {
    for (let k = 0; k < columns; k++) out[k * rows + o] = weight[o * columns + k];
  }
  return out;
}

// out (O, K) += a (O, N) b (K, N) transposed, in tiles of 2 x 4; a and b have rows of zeros up to a
// multiple of four.
function multipliedTransposed(a, b, out, rows, taps, size) {
  for (let o = 0; o < rows; o += 2) {
    for (let k = 0; k < taps; k += 4) {
      let [s0, s1, s2, s3] = [0, 0, 0, 0];
      let [s4, s5, s6, s7] = [0, 0, 0, 0];
      const p = o * size;
      const q = k * size;
      for (let i = 0; i < size; i++) {
        const a0 = a[p + i];
        const a1 = a[p + size + i];
        const b0 = b[q + i];
        const b1 = b[q + size + i];
        const b2 = b[q + 2 * size + i];
        const b3 = b[q + 3 * size + i];
        s0 += a0 * b0;
        s1 += a0 * b1;
        s2 += a0 * b2;
        s3 += a0 * b3;
        s4 += a1 * b0;
        s5 += a1 * b1;
        s6 += a1 * b2;
        s7 += a1 * b3;
      }
      [s0, s1, s2, s3, s4, s5, s6, s7].forEach((sum, i) => {
        const row = o + (i >> 2);
        const column = k + (i & 3);
        if (row < rows && column < taps) out[row * taps + column] += sum;
      });
    }
  }
}

class MLP {
  // `model` is the configuration of the network, and weights(name) gives a Float32Array. With a
  // `tape` (an array), each step adds to it the function that propagates its gradient; gradients of
  // weights are added to those of `gradients`, by name.
  constructor(model, weights, tape = null, gradients = null) {
    Object.assign(this, { model, weights, tape, gradients });
  }

  record(propagate) {
    if (this.tape) this.tape.push(propagate);
  }

  // loss.backward(), once the gradient of the output has been set
  backward() {
    while (this.tape.length) this.tape.pop()();
  }

  // nn.Linear
  linear(x, name) {
    const weight = this.weights(`${name}.weight`);
    const bias = this.weights(`${name}.bias`);
    const size = x.columns;
    const out = matrix(bias.length, size);
    for (let o = 0; o < bias.length; o++) out.data.fill(bias[o], o * size, (o + 1) * size);
    multiplied(weight, x.data, out.data, bias.length, x.rows, size);
    this.record(() => {
      const gradient = gradientOf(out);
      multipliedTransposed(gradient, x.data, this.gradients[`${name}.weight`], out.rows, x.rows, size);
      const ofBias = this.gradients[`${name}.bias`];
      for (let o = 0, i = 0; o < out.rows; o++) {
        for (let p = 0; p < size; p++, i++) ofBias[o] += gradient[i];
      }
      const back = transposed(weight, out.rows, x.rows);
      multiplied(back, gradient, gradientOf(x), x.rows, out.rows, size);
    });
    return out;
  }

  // F.silu
  silu(x) {
    const out = matrix(x.rows, x.columns);
    for (let i = 0; i < x.rows * x.columns; i++) out.data[i] = silu(x.data[i]);
    this.record(() => {
      const gradient = gradientOf(out);
      const ofInput = gradientOf(x);
      for (let i = 0; i < x.rows * x.columns; i++) {
        const sigmoid = 1 / (1 + Math.exp(-x.data[i]));
        ofInput[i] += gradient[i] * sigmoid * (1 + x.data[i] * (1 - sigmoid));
      }
    });
    return out;
  }

  // nn.LayerNorm: each column has the mean 0 and the variance 1, before the weights
  norm(x, name) {
    const weight = this.weights(`${name}.weight`);
    const bias = this.weights(`${name}.bias`);
    const { rows, columns } = x;
    const mean = new Float64Array(columns);
    const scale = new Float64Array(columns);
    for (let c = 0, i = 0; c < rows; c++) {
      for (let p = 0; p < columns; p++, i++) mean[p] += x.data[i] / rows;
    }
    for (let c = 0, i = 0; c < rows; c++) {
      for (let p = 0; p < columns; p++, i++) scale[p] += (x.data[i] - mean[p]) ** 2 / rows;
    }
    for (let p = 0; p < columns; p++) scale[p] = 1 / Math.sqrt(scale[p] + 1e-5);
    const out = matrix(rows, columns);
    const hat = new Float32Array(rows * columns);
    for (let c = 0, i = 0; c < rows; c++) {
      for (let p = 0; p < columns; p++, i++) {
        hat[i] = (x.data[i] - mean[p]) * scale[p];
        out.data[i] = hat[i] * weight[c] + bias[c];
      }
    }
    this.record(() => {
      const gradient = gradientOf(out);
      const ofInput = gradientOf(x);
      const ofWeight = this.gradients[`${name}.weight`];
      const ofBias = this.gradients[`${name}.bias`];
      const sum = new Float64Array(columns); // of the gradient of hat, and of its product with hat
      const product = new Float64Array(columns);
      for (let c = 0, i = 0; c < rows; c++) {
        for (let p = 0; p < columns; p++, i++) {
          ofWeight[c] += gradient[i] * hat[i];
          ofBias[c] += gradient[i];
          sum[p] += (gradient[i] * weight[c]) / rows;
          product[p] += (gradient[i] * weight[c] * hat[i]) / rows;
        }
      }
      for (let c = 0, i = 0; c < rows; c++) {
        for (let p = 0; p < columns; p++, i++) {
          ofInput[i] += scale[p] * (gradient[i] * weight[c] - sum[p] - hat[i] * product[p]);
        }
      }
    });
    return out;
  }

  // models.layers.embed, and F.silu: a column for each pair of a timestep and a class (-1: any)
  embedding(t, label) {
    const { channels, num_classes } = this.model;
    const half = channels / 2;
    const features = matrix(channels, t.length);
    for (let i = 0; i < half; i++) {
      const frequency = Math.exp((-Math.log(10000) * i) / half);
      for (let p = 0; p < t.length; p++) {
        features.data[i * t.length + p] = Math.cos(t[p] * frequency);
        features.data[(half + i) * t.length + p] = Math.sin(t[p] * frequency);
      }
    }
    const time = this.linear(this.silu(this.linear(features, "time.1")), "time.3");
    return this.silu(num_classes ? this.labelled(time, label) : time);
  }

  // emb + label(...): nn.Embedding
  labelled(x, label) {
    const table = this.weights("label.weight");
    const { rows, columns } = x;
    const out = matrix(rows, columns);
    const place = (c, p) => (label[p] < 0 ? this.model.num_classes : label[p]) * rows + c;
    for (let c = 0, i = 0; c < rows; c++) {
      for (let p = 0; p < columns; p++, i++) out.data[i] = x.data[i] + table[place(c, p)];
    }
    this.record(() => {
      const gradient = gradientOf(out);
      const ofTable = this.gradients["label.weight"];
      for (let c = 0, i = 0; c < rows; c++) {
        for (let p = 0; p < columns; p++, i++) ofTable[place(c, p)] += gradient[i];
      }
      gradientOf(x).forEach((_, i, ofInput) => (ofInput[i] += gradient[i]));
    });
    return out;
  }

  // PointEmbedding.forward: the coordinates, and sines and cosines of 1, 2, 4, ... radians a unit.
  // Points need no gradient.
  stem(x) {
    const waves = x.rows * OCTAVES;
    const size = x.columns;
    const features = matrix(x.rows + 2 * waves, size);
    features.data.set(x.data.subarray(0, x.rows * size));
    for (let row = 0; row < waves; row++) {
      const from = Math.floor(row / OCTAVES) * size;
      const frequency = 2 ** (row % OCTAVES);
      for (let p = 0; p < size; p++) {
        const angle = x.data[from + p] * frequency;
        features.data[(x.rows + row) * size + p] = Math.sin(angle);
        features.data[(x.rows + waves + row) * size + p] = Math.cos(angle);
      }
    }
    return this.linear(features, "stem.linear");
  }

  // Block.forward
  block(x, emb, which, name) {
    const scaleShift = this.linear(emb, `${name}.scale_shift`);
    const h = this.linear(this.silu(this.norm(x, `${name}.norm`)), `${name}.linear_1`);
    return this.added(x, this.linear(this.silu(this.scaled(h, scaleShift, which)), `${name}.linear_2`));
  }

  // torch.addcmul(shift, h, 1 + scale)
  scaled(h, scaleShift, which) {
    const { rows, columns } = h;
    const out = matrix(rows, columns);
    const scale = (c, p) => c * scaleShift.columns + which[p];
    const shift = (c, p) => (rows + c) * scaleShift.columns + which[p];
    for (let c = 0, i = 0; c < rows; c++) {
      for (let p = 0; p < columns; p++, i++) {
        out.data[i] = h.data[i] * (1 + scaleShift.data[scale(c, p)]) + scaleShift.data[shift(c, p)];
      }
    }
    this.record(() => {
      const gradient = gradientOf(out);
      const ofInput = gradientOf(h);
      const ofBoth = gradientOf(scaleShift);
      for (let c = 0, i = 0; c < rows; c++) {
        for (let p = 0; p < columns; p++, i++) {
          ofInput[i] += gradient[i] * (1 + scaleShift.data[scale(c, p)]);
          ofBoth[scale(c, p)] += gradient[i] * h.data[i];
          ofBoth[shift(c, p)] += gradient[i];
        }
      }
    });
    return out;
  }

  added(a, b) {
    const out = matrix(a.rows, a.columns);
    for (let i = 0; i < out.data.length; i++) out.data[i] = a.data[i] + b.data[i];
    this.record(() => {
      const gradient = gradientOf(out);
      for (const each of [gradientOf(a), gradientOf(b)]) {
        for (let i = 0; i < each.length; i++) each[i] += gradient[i];
      }
    });
    return out;
  }

  // MLP.forward for points x (dim, N). Point p has the timestep t[which[p]] and the class
  // label[which[p]]: in sampling, many points share them.
  forward(x, t, label, which) {
    const emb = this.embedding(t, label);
    let h = this.stem(x);
    for (let i = 0; i < this.model.blocks; i++) h = this.block(h, emb, which, `blocks.${i}`);
    return this.linear(this.silu(this.norm(h, "norm")), "head");
  }
}

// Points (N, dim), one after the other, as a matrix (dim, N)
function columnsOf(points, dim) {
  const out = matrix(dim, points.length / dim);
  for (let p = 0; p < out.columns; p++) {
    for (let d = 0; d < dim; d++) out.data[d * out.columns + p] = points[p * dim + d];
  }
  return out;
}

// The network as the function that samplers.Denoiser calls, of points (N, dim), a timestep, and a
// class or an array of classes (N)
function predictor(model, shape, weights) {
  const network = new MLP(model, weights);
  return (x, t, label) => {
    const { dim } = shape;
    const count = x.length / dim;
    const labels = typeof label === "number" ? [label] : [...new Set(label)];
    const which = Array.from({ length: count }, (_, p) => (labels.length > 1 ? labels.indexOf(label[p]) : 0));
    const out = network.forward(columnsOf(x, dim), labels.map(() => t), labels, which);
    const found = new Float32Array(count * out.rows); // the prediction, and the learned variance
    for (let row = 0; row < out.rows; row++) {
      const first = Math.floor(row / dim) * count * dim + (row % dim);
      for (let p = 0; p < count; p++) found[first + p * dim] = out.data[row * count + p];
    }
    return found;
  };
}
