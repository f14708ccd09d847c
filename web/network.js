// The U-Net of models/unet.py, layer by layer. A feature map is {data, channels, height, width}, of
// a single image; the comments name the line of PyTorch that each step mirrors.

function map(channels, height, width, data) {
  return { data: data ?? new Float32Array(channels * height * width), channels, height, width };
}

// F.silu
function activated(x) {
  return map(x.channels, x.height, x.width, x.data.map(silu));
}

function added(a, b) {
  const out = map(a.channels, a.height, a.width);
  for (let i = 0; i < out.data.length; i++) out.data[i] = a.data[i] + b.data[i];
  return out;
}

// torch.cat([a, b], dim=1)
function joined(a, b) {
  const out = map(a.channels + b.channels, a.height, a.width);
  out.data.set(a.data);
  out.data.set(b.data, a.data.length);
  return out;
}

// nn.Linear on a vector
function linear(x, weight, bias) {
  const out = new Float32Array(bias.length);
  for (let o = 0; o < out.length; o++) {
    let sum = bias[o];
    for (let i = 0, w = o * x.length; i < x.length; i++, w++) sum += weight[w] * x[i];
    out[o] = sum;
  }
  return out;
}

// What each output pixel sees: a row for each input channel and place of the kernel, filled up with
// zeros to a multiple of four rows.
function unrolled(x, kernel, stride, height, width) {
  const size = height * width;
  const pad = (kernel - 1) / 2;
  const rows = Math.ceil((x.channels * kernel * kernel) / 4) * 4;
  const out = new Float32Array(rows * size);
  for (let c = 0, tap = 0; c < x.channels; c++) {
    for (let ky = 0; ky < kernel; ky++) {
      for (let kx = 0; kx < kernel; kx++, tap++) {
        for (let row = 0; row < height; row++) {
          const y = row * stride + ky - pad;
          if (y < 0 || y >= x.height) continue;
          const from = (c * x.height + y) * x.width;
          const to = tap * size + row * width;
          for (let column = 0; column < width; column++) {
            const at = column * stride + kx - pad;
            if (at >= 0 && at < x.width) out[to + column] = x.data[from + at];
          }
        }
      }
    }
  }
  return out;
}

// nn.Conv2d with a kernel of 1 or 3 pixels, padding that keeps the size, and a stride of 1 or 2
function convolved(x, weight, bias, kernel, stride = 1) {
  const height = Math.ceil(x.height / stride);
  const width = Math.ceil(x.width / stride);
  const size = height * width;
  const out = map(bias.length, height, width);
  for (let o = 0; o < bias.length; o++) out.data.fill(bias[o], o * size, (o + 1) * size);
  const columns = unrolled(x, kernel, stride, height, width);
  multiplied(weight, columns, out.data, bias.length, x.channels * kernel * kernel, size);
  return out;
}

const GROUP = 16; // channels of a group, as in models/unet.py

// nn.GroupNorm with the groups of models.unet.group_norm
function normalized(x, weight, bias) {
  const wanted = Math.max(1, Math.floor(x.channels / GROUP));
  const groups = x.channels % wanted ? 1 : wanted;
  const size = x.height * x.width;
  const length = (x.channels / groups) * size;
  const out = map(x.channels, x.height, x.width);
  for (let g = 0; g < groups; g++) {
    let sum = 0;
    for (let i = g * length; i < (g + 1) * length; i++) sum += x.data[i];
    const mean = sum / length;
    let squares = 0;
    for (let i = g * length; i < (g + 1) * length; i++) squares += (x.data[i] - mean) ** 2;
    const scale = 1 / Math.sqrt(squares / length + 1e-5);
    for (let i = g * length; i < (g + 1) * length; i++) {
      const channel = Math.floor(i / size);
      out.data[i] = (x.data[i] - mean) * scale * weight[channel] + bias[channel];
    }
  }
  return out;
}

// F.interpolate(x, size, mode="nearest")
function upsampled(x, height, width) {
  if (x.height === height && x.width === width) return x;
  const out = map(x.channels, height, width);
  for (let c = 0, to = 0; c < x.channels; c++) {
    for (let row = 0; row < height; row++) {
      const from = (c * x.height + Math.floor((row * x.height) / height)) * x.width;
      for (let column = 0; column < width; column++) {
        out.data[to++] = x.data[from + Math.floor((column * x.width) / width)];
      }
    }
  }
  return out;
}

// F.pixel_unshuffle
function folded(x, patch) {
  const height = x.height / patch;
  const width = x.width / patch;
  const out = map(x.channels * patch * patch, height, width);
  for (let c = 0, to = 0; c < x.channels; c++) {
    for (let dy = 0; dy < patch; dy++) {
      for (let dx = 0; dx < patch; dx++) {
        for (let y = 0; y < height; y++) {
          const from = (c * x.height + y * patch + dy) * x.width + dx;
          for (let column = 0; column < width; column++) out.data[to++] = x.data[from + column * patch];
        }
      }
    }
  }
  return out;
}

// F.pixel_shuffle
function unfolded(x, patch) {
  const channels = x.channels / (patch * patch);
  const out = map(channels, x.height * patch, x.width * patch);
  for (let c = 0, from = 0; c < channels; c++) {
    for (let dy = 0; dy < patch; dy++) {
      for (let dx = 0; dx < patch; dx++) {
        for (let y = 0; y < x.height; y++) {
          const to = (c * out.height + y * patch + dy) * out.width + dx;
          for (let column = 0; column < x.width; column++) out.data[to + column * patch] = x.data[from++];
        }
      }
    }
  }
  return out;
}

// models.layers.heads_for
function headsFor(channels) {
  let heads = Math.max(1, Math.floor(channels / 32));
  while (channels % heads) heads--;
  return heads;
}

class UNet {
  // `model` is the configuration of the network, and weights(name) gives a Float32Array.
  constructor(model, weights) {
    this.model = model;
    this.weights = weights;
    this.texts = new Map(); // encoded captions, by their tokens
  }

  has(name) {
    return this.weights(name) !== undefined;
  }

  conv(x, name, kernel, stride) {
    return convolved(x, this.weights(`${name}.weight`), this.weights(`${name}.bias`), kernel, stride);
  }

  norm(x, name) {
    return normalized(x, this.weights(`${name}.weight`), this.weights(`${name}.bias`));
  }

  linear(x, name) {
    return linear(x, this.weights(`${name}.weight`), this.weights(`${name}.bias`));
  }

  // text.encode: the states of a caption, given by its tokens; -1 is any caption. null for a network
  // without captions
  text(label) {
    if (!this.has("caption.weight")) return null;
    const tokens = Array.isArray(label) ? label : [];
    const key = String(tokens);
    if (!this.texts.has(key)) this.texts.set(key, new CaptionEncoder(this.weights, "encoder").states(tokens));
    return this.texts.get(key);
  }

  // models.layers.embed, and F.silu: features of the timestep and of the class (-1: any class), or
  // of the whole caption
  embedding(t, label, text) {
    const half = this.weights("time.1.weight").length / this.weights("time.1.bias").length / 2;
    const features = new Float32Array(2 * half);
    for (let i = 0; i < half; i++) {
      const angle = t * Math.exp((-Math.log(10000) * i) / half);
      features[i] = Math.cos(angle);
      features[half + i] = Math.sin(angle);
    }
    const emb = this.linear(this.linear(features, "time.1").map(silu), "time.3");
    if (this.has("label.weight")) {
      const row = label < 0 ? this.model.num_classes : label;
      const table = this.weights("label.weight");
      for (let i = 0; i < emb.length; i++) emb[i] += table[row * emb.length + i];
    }
    if (text) this.linear(text[0], "caption").forEach((value, i) => (emb[i] += value));
    return emb.map(silu);
  }

  // Block.forward
  block(x, emb, text, name) {
    const h = this.conv(activated(this.norm(x, `${name}.norm_1`)), `${name}.conv_1`, 3);
    return this.finish(h, this.skip(x, name), emb, text, name);
  }

  skip(x, name) {
    return this.has(`${name}.skip.weight`) ? this.conv(x, `${name}.skip`, 1) : x;
  }

  // Block.finish
  finish(h, skip, emb, text, name) {
    const scaleShift = this.linear(emb, `${name}.scale_shift`);
    h = this.norm(h, `${name}.norm_2`);
    const size = h.height * h.width;
    for (let c = 0, i = 0; c < h.channels; c++) {
      for (let p = 0; p < size; p++, i++) {
        h.data[i] = silu(h.data[i] * (1 + scaleShift[c]) + scaleShift[h.channels + c]);
      }
    }
    let out = added(skip, this.conv(h, `${name}.conv_2`, 3));
    if (this.has(`${name}.attention.qkv.weight`)) out = this.attention(out, `${name}.attention`);
    return this.has(`${name}.reading.q.weight`) ? this.reading(out, text, `${name}.reading`) : out;
  }

  // x + CrossAttention.forward, from the pixels to the states of the caption
  reading(x, text, name) {
    const size = x.height * x.width;
    const pixels = Array.from({ length: size }, (_, p) =>
      Float32Array.from({ length: x.channels }, (_, c) => x.data[c * size + p])
    );
    const [weight, bias] = [this.weights(`${name}.norm.weight`), this.weights(`${name}.norm.bias`)];
    const queries = pixels.map((pixel) => this.linear(layerNormed(pixel, weight, bias), `${name}.q`));
    const both = text.map((state) => this.linear(state, `${name}.kv`));
    const [keys, values] = [0, x.channels].map((first) =>
      both.map((kv) => kv.subarray(first, first + x.channels))
    );
    const out = map(x.channels, x.height, x.width);
    attendedByHeads(queries, keys, values).forEach((found, p) => {
      this.linear(found, `${name}.out`).forEach((value, c) => (out.data[c * size + p] = value));
    });
    return added(x, out);
  }

  // Attention.forward
  attention(x, name) {
    const size = x.height * x.width;
    const channels = x.channels;
    const heads = headsFor(channels);
    const width = channels / heads;
    const tokens = this.norm(x, `${name}.norm`); // (C, HW)
    const all = convolved(tokens, this.weights(`${name}.qkv.weight`), this.weights(`${name}.qkv.bias`), 1);
    const found = map(channels, x.height, x.width);
    const scores = new Float64Array(size);
    for (let head = 0; head < heads; head++) {
      const [q, k, v] = [0, 1, 2].map((part) => (part * channels + head * width) * size);
      for (let i = 0; i < size; i++) {
        let most = -Infinity;
        for (let j = 0; j < size; j++) {
          let sum = 0;
          for (let d = 0; d < width; d++) sum += all.data[q + d * size + i] * all.data[k + d * size + j];
          scores[j] = sum / Math.sqrt(width);
          most = Math.max(most, scores[j]);
        }
        let total = 0;
        for (let j = 0; j < size; j++) total += scores[j] = Math.exp(scores[j] - most);
        for (let d = 0; d < width; d++) {
          let sum = 0;
          for (let j = 0; j < size; j++) sum += scores[j] * all.data[v + d * size + j];
          found.data[(head * width + d) * size + i] = sum / total;
        }
      }
    }
    return added(x, this.conv(found, `${name}.out`, 1));
  }

  // UNet.forward for one image x {data, channels, height, width}, a timestep, and a class or the
  // tokens of a caption
  forward(x, t, label) {
    const { multipliers, blocks, efficient, patch_size } = this.model;
    const text = this.text(label);
    const emb = this.embedding(t, label, text);
    let h = this.conv(folded(x, patch_size), "stem", 3);
    const skips = []; // with `efficient`, the end of each level, else of each block
    let layer = 0;
    for (let level = 0; level < multipliers.length; level++) {
      if (level > 0) h = this.conv(h, `down.${layer++}.conv`, 3, 2);
      for (let i = 0; i < (efficient && level === 0 ? 0 : blocks); i++) {
        h = this.block(h, emb, text, `down.${layer++}`);
        if (!efficient) skips.push(h);
      }
      if (efficient) skips.push(h);
    }
    h = this.block(h, emb, text, "middle.0");
    h = this.block(h, emb, text, "middle.1");
    layer = 0;
    for (let level = multipliers.length - 1; level >= 0; level--) {
      for (let i = 0; i < blocks; i++) {
        const name = `up.${layer++}`;
        if (efficient && i > 0) {
          h = this.block(h, emb, text, name);
          continue;
        }
        const other = skips.pop();
        if (efficient) {
          // AddingBlock.forward
          const fitted = this.has(`${name}.fit.weight`) ? this.conv(h, `${name}.fit`, 1) : h;
          h = this.block(added(upsampled(fitted, other.height, other.width), other), emb, text, name);
        } else {
          // UpBlock.forward
          h = this.block(joined(upsampled(h, other.height, other.width), other), emb, text, name);
        }
      }
      if (level > 0) layer++; // nn.Identity
    }
    return unfolded(this.conv(activated(this.norm(h, "norm")), "head", 3), patch_size);
  }
}

// The network as the function that samplers.Denoiser calls, of the numbers of an image
function predictor(model, shape, weights) {
  const unet = new UNet(model, weights);
  return (x, t, label) => unet.forward(map(shape.channels, shape.height, shape.width, x), t, label).data;
}
