// Captions: models/tokenizer.py and models/text.py, for one caption.

const FIRST_BYTE = 1; // token 0 is padding, which one caption does not need
const FIRST_WORD = FIRST_BYTE + 256;
const WORD = /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu; // letters and digits, or a punctuation mark

// tokenizer.words_of: the words without regard to case (str.casefold for common letters)
function wordsOf(caption) {
  const folded = caption.normalize("NFC").toLowerCase().replaceAll("ß", "ss").replaceAll("ς", "σ");
  return folded.match(WORD) ?? [];
}

// Tokenizer.tokens: a word that is not in the vocabulary becomes a blank and its bytes
function tokensOf(caption, words) {
  const numbers = new Map(words.map((word, i) => [word, FIRST_WORD + i]));
  const bytes = (word) => [...new TextEncoder().encode(` ${word}`)].map((byte) => FIRST_BYTE + byte);
  return wordsOf(caption).flatMap((word) => (numbers.has(word) ? [numbers.get(word)] : bytes(word)));
}

// nn.LayerNorm on a vector
function layerNormed(x, weight, bias) {
  const mean = x.reduce((sum, value) => sum + value, 0) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  const scale = 1 / Math.sqrt(variance + 1e-5);
  return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
}

// nn.GELU(approximate="tanh")
const gelu = (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));

// models.layers.attend for one head: softmax(q k^T / sqrt(d)) v, of vectors with d numbers
function attended(q, keys, values) {
  const scores = keys.map((k) => k.reduce((sum, value, i) => sum + value * q[i], 0) / Math.sqrt(q.length));
  const most = Math.max(...scores);
  const shares = scores.map((score) => Math.exp(score - most));
  const total = shares.reduce((sum, share) => sum + share, 0);
  return q.map((_, i) => shares.reduce((sum, share, j) => sum + share * values[j][i], 0) / total);
}

// Attention of several heads from each query to all keys; all are vectors of the same width.
function attendedByHeads(queries, keys, values) {
  const width = queries[0].length / headsFor(queries[0].length);
  const out = queries.map((q) => new Float32Array(q.length));
  for (let first = 0; first < queries[0].length; first += width) {
    const part = (x) => x.subarray(first, first + width);
    const [k, v] = [keys.map(part), values.map(part)];
    queries.forEach((q, i) => out[i].set(attended(part(q), k, v), first));
  }
  return out;
}

// TextEncoder.forward of the tokens of a caption: a state (D) for the start token, which stands for
// the whole caption, and for each other one. Padding is left out, because nothing attends to it.
class CaptionEncoder {
  constructor(weights, name) {
    Object.assign(this, { weights, name });
  }

  layer(kind, x, name) {
    const [weight, bias] = ["weight", "bias"].map((part) => this.weights(`${this.name}.${name}.${part}`));
    return kind(x, weight, bias);
  }

  states(tokens) {
    const position = this.weights(`${this.name}.position.weight`);
    const token = this.weights(`${this.name}.token.weight`);
    const width = this.weights(`${this.name}.norm.bias`).length;
    const row = (table, i) => table.subarray(i * width, (i + 1) * width);
    let states = [row(position, 0).slice()];
    tokens.forEach((number, i) => {
      states.push(row(position, i + 1).map((value, d) => value + row(token, number)[d]));
    });
    for (let i = 0; this.weights(`${this.name}.blocks.${i}.qkv.weight`); i++) {
      states = this.block(states, `blocks.${i}`);
    }
    return states.map((state) => this.layer(layerNormed, state, "norm"));
  }

  // TextBlock.forward
  block(states, name) {
    const width = states[0].length;
    const qkv = states.map((x) => this.layer(linear, this.layer(layerNormed, x, `${name}.norm_1`), `${name}.qkv`));
    const [q, k, v] = [0, 1, 2].map((part) => qkv.map((x) => x.subarray(part * width, (part + 1) * width)));
    return attendedByHeads(q, k, v).map((found, i) => {
      const change = this.layer(linear, found, `${name}.out`);
      const x = states[i].map((value, d) => value + change[d]);
      const hidden = this.layer(linear, this.layer(layerNormed, x, `${name}.norm_2`), `${name}.mlp.0`);
      const more = this.layer(linear, hidden.map(gelu), `${name}.mlp.2`);
      return x.map((value, d) => value + more[d]);
    });
  }
}
