// Runs in a web worker, so that the page never freezes. Messages to it:
//   {model, process, shape, index, weights}   once: the network, with its weights as 16-bit floats
//   {job, request}                            draw one image; answered by a message for each step
// It answers {job, step, steps, t, x, x_0, calls}, and {job, error} if something fails.

let network, processOfModel, shapeOfModel;

// IEEE 754 half precision to float32
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * 2 ** -14 * (fraction / 1024);
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

// Weights by name, from their places {name: [first, count]} in an array of halves.
function weightsOf(index, halves) {
  const found = {};
  for (const [name, [first, count]] of Object.entries(index)) {
    found[name] = Float32Array.from(halves.subarray(first, first + count), fromHalf);
  }
  return (name) => found[name];
}

function predictor(model, shape, weights) {
  const unet = new UNet(model, weights);
  return (x, t, label) => unet.forward(map(shape.channels, shape.height, shape.width, x), t, label).data;
}

function onMessage({ data }) {
  if (data.model) {
    processOfModel = data.process;
    shapeOfModel = data.shape;
    network = predictor(data.model, data.shape, weightsOf(data.index, data.weights));
    return;
  }
  const { job, request } = data;
  let calls = 0;
  const predict = (x, t, label) => (calls++, network(x, t, label));
  try {
    let step = 0;
    for (const { x, x_0, level } of draw(processOfModel, predict, shapeOfModel, request)) {
      self.postMessage({ job, step, t: level.t, level, x, x_0, calls });
      step++;
    }
    self.postMessage({ job, done: true, calls });
  } catch (error) {
    self.postMessage({ job, error: String(error) });
  }
}

if (typeof self !== "undefined" && typeof window === "undefined") self.onmessage = onMessage;
