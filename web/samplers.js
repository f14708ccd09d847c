// The process and the samplers: diffusion.py, objectives.py and samplers.py for a single image, or
// for many points, which are the rows (N, dim) of one array.

// objectives.PREDICTIONS: the clean data that an output implies, and the output of clean data
const size_ = (alpha, sigma) => Math.sqrt(alpha * alpha + sigma * sigma);
const PREDICTIONS = {
  eps: {
    x_0: (out, x, alpha, sigma) => (x - sigma * out) / alpha,
    target: (x_0, noise) => noise,
  },
  x_0: { x_0: (out) => out, target: (x_0) => x_0 },
  v: {
    x_0: (out, x, a, s) => (a * x) / size_(a, s) ** 2 - (s / size_(a, s)) * out,
    target: (x_0, noise, a, s) => (a * noise - s * x_0) / size_(a, s),
  },
  flow: {
    x_0: (out, x, alpha, sigma) => (x - sigma * out) / (alpha + sigma),
    target: (x_0, noise) => noise - x_0,
  },
  edm: {
    x_0: (out, x, a, s) => (a / size_(a, s) ** 2) * x + (s / size_(a, s)) * out,
    target: (x_0, noise, a, s) =>
      (x_0 - (a / size_(a, s) ** 2) * (a * x_0 + s * noise)) / (s / size_(a, s)),
  },
};

const CLEAN = { t: -1, alpha: 1, sigma: 0 };
const ratioOf = (level) => (level.alpha > 0 ? level.sigma / level.alpha : Infinity);
const logRatio = (level) => Math.log(level.alpha) - Math.log(level.sigma); // lambda

// Python's round(): halves go to the even neighbour.
function rounded(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 ? below + 1 : below;
}

// GaussianDiffusion.levels with the sampler's spacing: "upper" for consistency, and "trailing" (Lin
// et al. 2023, table 2) for the others
function levelsOf(process, steps, sampler) {
  const total = process.alpha.length;
  const levels = [];
  for (let i = 0; i < steps; i++) {
    const trailing = (total * (steps - i)) / steps;
    const upper = steps > 1 ? total * (1 - (0.4 * i) / (steps - 1)) : total;
    const t = rounded((sampler === "consistency" ? upper : trailing) - 1);
    levels.push({ t, alpha: process.alpha[t], sigma: process.sigma[t] });
  }
  return [...levels, CLEAN];
}

// diffusion.Denoiser: (x, level) -> {x_0, eps, fraction}. `predict` is the network, as (x, t,
// label): -1 is any class, and points may have an array of labels, one for each. Its output is the
// prediction, followed by the learned variance, if any. `fraction` is the latter, between the posterior's (0) and beta (1); or null.
class Denoiser {
  constructor(process, predict, label, guidance) {
    Object.assign(this, { process, predict, label, guidance, calls: 0 });
    this.prediction = PREDICTIONS[process.prediction];
  }

  // GaussianDiffusion.split of the network's output: the prediction and the learned variance
  output(x, level, label) {
    this.calls++;
    const s = this.process.sigma_data;
    const scale = 1 / Math.sqrt((level.alpha * s) ** 2 + level.sigma ** 2);
    const out = this.predict(x.map((value) => value * scale), level.t, label);
    const variance = out.subarray(x.length);
    return [out.subarray(0, x.length), variance.length ? variance.map((v) => (v + 1) / 2) : null];
  }

  x_0(out, x, level) {
    const s = this.process.sigma_data;
    return s * this.prediction.x_0(out, x, s * level.alpha, level.sigma);
  }

  // Denoiser.clipped
  clipped(out, x, level) {
    if (!this.process.clip_loss) return out;
    const { alpha, sigma } = level;
    const s = this.process.sigma_data;
    return out.map((value, i) => {
      const x_0 = Math.min(1, Math.max(-1, this.x_0(value, x[i], level)));
      return this.prediction.target(x_0 / s, (x[i] - alpha * x_0) / sigma, s * alpha, sigma);
    });
  }

  denoise(x, level) {
    const label = this.guidance === 0 ? -1 : (this.label ?? -1);
    let [out, fraction] = this.output(x, level, label);
    if (this.label !== null && this.guidance !== 1 && this.guidance !== 0) {
      const cond = this.clipped(out, x, level);
      const uncond = this.clipped(this.output(x, level, -1)[0], x, level);
      out = uncond.map((value, i) => value + this.guidance * (cond[i] - value));
    }
    const x_0 = new Float32Array(x.length);
    const eps = new Float32Array(x.length);
    for (let i = 0; i < x.length; i++) {
      x_0[i] = this.x_0(out[i], x[i], level);
      if (this.process.clip) x_0[i] = Math.min(1, Math.max(-1, x_0[i]));
      eps[i] = (x[i] - level.alpha * x_0[i]) / level.sigma;
    }
    return { x_0, eps, fraction };
  }
}

// a x + b y (+ c z)
function mixed(a, x, b, y, c = 0, z = null) {
  return x.map((value, i) => a * value + b * y[i] + (z ? c * z[i] : 0));
}

// samplers.posterior_std
function posteriorStd(cur, nxt) {
  const variance = cur.sigma ** 2 - (cur.alpha / nxt.alpha) ** 2 * nxt.sigma ** 2;
  return (Math.sqrt(variance) * nxt.sigma) / cur.sigma;
}

function pairs(levels) {
  return levels.slice(0, -1).map((level, i) => [level, levels[i + 1]]);
}

// Each yields {x, x_0} after a step, as in samplers.py. `noise` draws fresh noise.
const SAMPLERS = {
  *ddpm(denoiser, x, levels, noise) {
    for (const [cur, nxt] of pairs(levels)) {
      const { x_0, fraction } = denoiser.denoise(x, cur);
      const alpha = cur.alpha / nxt.alpha;
      const beta = cur.sigma ** 2 - alpha ** 2 * nxt.sigma ** 2;
      x = mixed((nxt.alpha * beta) / cur.sigma ** 2, x_0, (alpha * nxt.sigma ** 2) / cur.sigma ** 2, x);
      if (nxt.sigma > 0) {
        const small = posteriorStd(cur, nxt);
        const fresh = noise();
        x = x.map((value, i) => {
          const std = fraction ? small * (Math.sqrt(beta) / small) ** fraction[i] : small;
          return value + std * fresh[i];
        });
      }
      yield { x, x_0 };
    }
  },

  *ddim(denoiser, x, levels) {
    for (const [cur, nxt] of pairs(levels)) {
      const { x_0, eps } = denoiser.denoise(x, cur);
      x = mixed(nxt.alpha, x_0, nxt.sigma, eps);
      yield { x, x_0 };
    }
  },

  *dpmpp_2m(denoiser, x, levels) {
    const past = [];
    for (const [cur, nxt] of pairs(levels)) {
      const { x_0 } = denoiser.denoise(x, cur);
      past.unshift([logRatio(cur), x_0]);
      const h = logRatio(nxt) - logRatio(cur);
      const slope = firstSlope(past, nxt);
      const goal = slope ? mixed(1, x_0, 0.5, slope) : x_0;
      x = mixed(nxt.sigma / cur.sigma, x, -nxt.alpha * Math.expm1(-h), goal);
      yield { x, x_0 };
    }
  },

  *dpmpp_2m_sde(denoiser, x, levels, noise) {
    const past = [];
    for (const [cur, nxt] of pairs(levels)) {
      const { x_0 } = denoiser.denoise(x, cur);
      past.unshift([logRatio(cur), x_0]);
      const h = logRatio(nxt) - logRatio(cur);
      const slope = firstSlope(past, nxt);
      const goal = slope ? mixed(1, x_0, 0.5, slope) : x_0;
      const keep = ((nxt.sigma / cur.sigma) ** 2 * cur.alpha) / nxt.alpha;
      x = mixed(keep, x, -nxt.alpha * Math.expm1(-2 * h), goal);
      if (nxt.sigma > 0) x = mixed(1, x, nxt.sigma * Math.sqrt(-Math.expm1(-2 * h)), noise());
      yield { x, x_0 };
    }
  },

  *consistency(denoiser, x, levels, noise) {
    for (const [cur, nxt] of pairs(levels)) {
      const { x_0 } = denoiser.denoise(x, cur);
      x = nxt.sigma > 0 ? mixed(nxt.alpha, x_0, nxt.sigma, noise()) : x_0;
      yield { x, x_0 };
    }
  },
};

// sampling.editing.repaint: pixels where `mask` is 1 are those of `known` with the noise of each
// level, and the others are sampled by ddpm; each step is repeated, so that both parts fit.
function* repaint(denoiser, x, levels, noise, { known, mask, resamplings }) {
  for (const [cur, nxt] of pairs(levels)) {
    let x_0, next;
    for (let again = resamplings; again > 0; again--) {
      const { value } = SAMPLERS.ddpm(denoiser, x, [cur, nxt], noise).next();
      const old = nxt.sigma > 0 ? mixed(nxt.alpha, known, nxt.sigma, noise()) : known;
      next = value.x.map((sampled, i) => (mask[i] > 0.5 ? old[i] : sampled));
      x_0 = value.x_0;
      if (again === 1 || nxt.sigma === 0) break;
      const alpha = cur.alpha / nxt.alpha; // q(x_cur | x_nxt)
      const beta = cur.sigma ** 2 - alpha ** 2 * nxt.sigma ** 2;
      x = mixed(alpha, next, Math.sqrt(beta), noise());
    }
    x = next;
    yield { x, x_0 };
  }
}

// samplers.slopes: the first divided difference of x_0, in units of the step; null if there is none
function firstSlope(past, nxt) {
  const h = logRatio(nxt) - past[0][0];
  if (past.length === 1 || !Number.isFinite(h) || !Number.isFinite(past[1][0])) return null;
  const scale = h / (past[0][0] - past[1][0]);
  return mixed(scale, past[0][1], -scale, past[1][1]);
}

// sampling.editing.slerp: spherical interpolation between two noises
function slerp(a, b, share) {
  const dot = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  const cosine = dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));
  const angle = Math.acos(Math.min(1, Math.max(-1, cosine)));
  if (angle < 1e-4) return mixed(1 - share, a, share, b);
  return mixed(Math.sin((1 - share) * angle) / Math.sin(angle), a, Math.sin(share * angle) / Math.sin(angle), b);
}

// utils.NoisePerImage: draws noise of items, each of which has its own random stream.
function noisePerImage(seed, first, items, numbers) {
  const generators = Array.from({ length: items }, (_, i) => new Generator(imageSeed(seed, first + i)));
  return () => {
    const noise = new Float32Array(items * numbers);
    generators.forEach((generator, i) => noise.set(generator.normal(numbers), i * numbers));
    return noise;
  };
}

// Draw one image, or points. Yields {x, x_0, level} for the noise and after each step.
//   shape: {channels, height, width}, or {dim} of points
//   request: label (or null), seed, index, sampler, steps, guidance; for points also `count`; for
//   image to image also `start` (pixels in [-1, 1]) and `strength`; to keep pixels, `known`, `mask`
//   (1: keep) and `resamplings`; and between the noise of two seeds, `other` and the `share` of it.
function* draw(process, predict, shape, request) {
  const size = shape.dim ?? shape.channels * shape.height * shape.width;
  const stream = (seed) => noisePerImage(seed, request.index ?? 0, request.count ?? 1, size);
  const noise = stream(request.seed);
  let levels = levelsOf(process, request.steps, request.sampler);
  let first = noise();
  if (request.other !== undefined) first = slerp(first, stream(request.other)(), request.share);
  if (request.start) {
    // sampling.editing.last_part
    const left = Math.max(1, rounded(request.steps * request.strength));
    levels = levels.slice(levels.length - 1 - left);
  }
  const { alpha, sigma } = levels[0];
  let x = request.start
    ? mixed(alpha, request.start, sigma, first)
    : first.map((value) => value * size_(alpha, sigma));
  yield { x, x_0: null, level: levels[0] };
  const denoiser = new Denoiser(process, predict, request.label, request.guidance);
  const steps = request.mask
    ? repaint(denoiser, x, levels, noise, request)
    : SAMPLERS[request.sampler](denoiser, x, levels, noise);
  let i = 0;
  for (const found of steps) {
    yield { ...found, level: levels[++i] };
  }
}
