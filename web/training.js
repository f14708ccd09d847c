// Trains an MLP on points, as train.py does: the diffusion loss, AdamW, and the moving average of
// the weights. The defaults are those of train.py for points, with a smaller network and batch.

const OWN_MODEL = { channels: 64, blocks: 2, num_classes: 0 };
const OPTIONS = { batch: 128, lr: 2e-3, warmup: 100, maxNorm: 1, emaDecay: 0.9999 };
const ADAMW = { betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.01 }; // of torch.optim.AdamW

// The weights of a new network by name, as torch.nn initialises them: uniform below 1 / sqrt(inputs)
function newWeights(model, dim, generator) {
  const found = {};
  const { channels } = model;
  const linear = (name, outputs, inputs, bound = 1 / Math.sqrt(inputs)) => {
    const values = (count) => Float32Array.from({ length: count }, () => bound * (2 * generator.uniform() - 1));
    found[`${name}.weight`] = values(outputs * inputs);
    found[`${name}.bias`] = values(outputs);
  };
  const norm = (name) => {
    found[`${name}.weight`] = new Float32Array(channels).fill(1);
    found[`${name}.bias`] = new Float32Array(channels);
  };
  linear("time.1", channels, channels);
  linear("time.3", channels, channels);
  linear("stem.linear", channels, dim * (1 + 2 * OCTAVES));
  for (let i = 0; i < model.blocks; i++) {
    norm(`blocks.${i}.norm`);
    linear(`blocks.${i}.linear_1`, channels, channels);
    linear(`blocks.${i}.scale_shift`, 2 * channels, channels);
    linear(`blocks.${i}.linear_2`, channels, channels, 0); // models.layers.zero
  }
  norm("norm");
  linear("head", dim, channels, 0);
  return found;
}

// GaussianDiffusion.loss of points x_0 (N, dim) with their timesteps (N), classes (N) and noise
// (N, dim); the gradient is added to that of the network.
function lossAndGradient(network, process, dim, { x_0, t, label, noise }) {
  const s = process.sigma_data;
  const { target } = PREDICTIONS[process.prediction];
  const x_in = new Float32Array(x_0.length);
  const wanted = new Float32Array(x_0.length);
  for (let i = 0; i < x_0.length; i++) {
    const at = t[Math.floor(i / dim)];
    const [alpha, sigma] = [process.alpha[at], process.sigma[at]];
    x_in[i] = (alpha * x_0[i] + sigma * noise[i]) / size_(alpha * s, sigma);
    wanted[i] = target(x_0[i] / s, noise[i], s * alpha, sigma);
  }
  const which = Int32Array.from(t, (_, p) => p);
  const out = network.forward(columnsOf(x_in, dim), t, label, which);
  const goal = columnsOf(wanted, dim).data;
  const gradient = gradientOf(out);
  let loss = 0;
  for (let i = 0; i < x_0.length; i++) {
    const error = out.data[i] - goal[i];
    loss += error ** 2 / x_0.length;
    gradient[i] = (2 * error) / x_0.length;
  }
  network.backward();
  return loss;
}

// training.plan.learning_rate with the decay "cosine"
function learningRate(step, total, { lr, warmup }) {
  if (step < warmup) return (lr * (step + 1)) / warmup;
  const progress = Math.min(1, (step - warmup) / Math.max(1, total - warmup));
  return lr * 0.5 * (1 + Math.cos(Math.PI * progress));
}

// The weights, their average and the optimizer: training.trainer.Trainer
class Trainer {
  constructor(model, dim, process, weights, options = OPTIONS) {
    Object.assign(this, { dim, process, weights, options, step: 0 });
    const zeros = () =>
      Object.fromEntries(Object.entries(weights).map(([name, { length }]) => [name, new Float32Array(length)]));
    [this.gradients, this.first, this.second, this.average] = [zeros(), zeros(), zeros(), zeros()];
    this.network = new MLP(model, (name) => weights[name], [], this.gradients);
  }

  // Trainer.train_step; returns the loss
  trainStep(batch, lr) {
    for (const gradient of Object.values(this.gradients)) gradient.fill(0);
    const loss = lossAndGradient(this.network, this.process, this.dim, batch);
    if (!Number.isFinite(loss)) throw new Error("the loss is not finite");
    this.update(lr, this.clipped());
    this.step++;
    return loss;
  }

  // torch.nn.utils.clip_grad_norm_: the factor of the gradients
  clipped() {
    let squares = 0;
    for (const gradient of Object.values(this.gradients)) {
      for (let i = 0; i < gradient.length; i++) squares += gradient[i] ** 2;
    }
    return Math.min(1, this.options.maxNorm / (Math.sqrt(squares) + 1e-6));
  }

  // torch.optim.AdamW, and training.ema.EMA
  update(lr, factor) {
    const [beta1, beta2] = ADAMW.betas;
    const rate = lr / (1 - beta1 ** (this.step + 1));
    const correction = Math.sqrt(1 - beta2 ** (this.step + 1));
    const decay = this.step ? Math.min(this.options.emaDecay, (1 + this.step) / (10 + this.step)) : 0;
    for (const [name, weight] of Object.entries(this.weights)) {
      const [gradient, average] = [this.gradients[name], this.average[name]];
      const [m, v] = [this.first[name], this.second[name]];
      for (let i = 0; i < weight.length; i++) {
        const g = factor * gradient[i];
        m[i] += (1 - beta1) * (g - m[i]);
        v[i] += (1 - beta2) * (g * g - v[i]);
        const change = (rate * m[i]) / (Math.sqrt(v[i]) / correction + ADAMW.epsilon);
        weight[i] = weight[i] * (1 - lr * ADAMW.decay) - change;
        average[i] += (1 - decay) * (weight[i] - average[i]);
      }
    }
  }
}

// A batch of points (N, dim), drawn with replacement, with timesteps and noise
function batchOf(points, dim, timesteps, size, generator) {
  const x_0 = new Float32Array(size * dim);
  const below = (count) => Math.floor(count * generator.uniform());
  for (let i = 0; i < size; i++) {
    const chosen = below(points.length / dim) * dim;
    x_0.set(points.subarray(chosen, chosen + dim), i * dim);
  }
  const t = Int32Array.from({ length: size }, () => below(timesteps));
  const label = new Int32Array(size).fill(-1);
  return { x_0, t, label, noise: generator.normal(size * dim) };
}

// Train a new network on points (N, dim). Yields {trainer, loss} after each step.
function* train(process, dim, { points, steps, seed }) {
  const generator = new Generator(seed);
  const trainer = new Trainer(OWN_MODEL, dim, process, newWeights(OWN_MODEL, dim, generator));
  for (let step = 0; step < steps; step++) {
    const batch = batchOf(points, dim, process.alpha.length, OPTIONS.batch, generator);
    const loss = trainer.trainStep(batch, learningRate(step, steps, OPTIONS));
    yield { trainer, loss };
  }
}
