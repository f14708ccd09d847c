// Tasks of the worker (worker.js) that are for points alone.

const PREVIEWS = 10; // pictures of samples in a training
const PREVIEW = { label: null, sampler: "dpmpp_2m", steps: 20, guidance: 1, count: 400 };

// sigma * score = -eps (visualize_diffusion.score) at positions (N, dim), in units of the network's
// input, at the timestep t
TASKS.field = function* ({ network, t, positions, label, guidance }) {
  const level = { t, alpha: processOfModel.alpha[t], sigma: processOfModel.sigma[t] };
  const denoiser = new Denoiser(processOfModel, networks[network], label, guidance);
  const scale = size_(level.alpha, level.sigma);
  const { eps } = denoiser.denoise(positions.map((value) => value * scale), level);
  yield { t, arrows: eps.map((value) => -value) };
};

// Train a network on points (N, dim): `networks.own`. Yields {step, steps, loss}, the loss of late
// steps on average, and sometimes `samples`.
TASKS.train = function* (request) {
  const { steps } = request;
  let mean = null;
  for (const { trainer, loss } of train(processOfModel, shapeOfModel.dim, request)) {
    const { step } = trainer;
    mean = mean === null ? loss : mean + 0.02 * (loss - mean);
    if (step === 1) networks.own = predictor(OWN_MODEL, shapeOfModel, (name) => trainer.average[name]);
    if (step % Math.ceil(steps / PREVIEWS) === 0 || step === steps) {
      const drawing = { ...PREVIEW, steps: Math.min(PREVIEW.steps, processOfModel.alpha.length), seed: request.seed };
      const samples = [...draw(processOfModel, networks.own, shapeOfModel, drawing)].at(-1).x;
      yield { step, steps, loss: mean, samples };
    } else {
      yield step % 10 === 0 ? { step, steps, loss: mean } : null;
    }
  }
};
