// Runs in a web worker, so that the page never freezes. Messages to it:
//   {model, process, shape, index, weights}   once: the network, with its weights as floats
//   {kind, job, request}                      a task of `TASKS`; it ends an earlier one of its kind
//   {kind, job: null}                         end the task of this kind
// It answers {kind, job, ...} for each message of the task, then {kind, job, done: true}, and
// {kind, job, error} if something fails.

const SLICE = 40; // milliseconds after which a task pauses, so that other messages are read
const networks = {}; // by name: "page" is that of the page
let processOfModel, shapeOfModel;

// IEEE 754 half precision to float32
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * 2 ** -14 * (fraction / 1024);
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
}

// Weights by name, from their places {name: [first, count]} in an array of floats: a Float32Array,
// or a Uint16Array of floats in half precision.
function weightsOf(index, values) {
  const found = {};
  for (const [name, [first, count]] of Object.entries(index)) {
    const part = values.subarray(first, first + count);
    found[name] = values instanceof Float32Array ? part : Float32Array.from(part, fromHalf);
  }
  return (name) => found[name];
}

// Each yields messages, or null where it may only pause.
const TASKS = {
  // An image or points, by the network with the name `request.network`; a message for each step
  *draw(request) {
    let calls = 0;
    const network = networks[request.network ?? "page"];
    const predict = (x, t, label) => (calls++, network(x, t, label));
    let step = 0;
    for (const { x, x_0, level } of draw(processOfModel, predict, shapeOfModel, request)) {
      yield { step: step++, t: level.t, level, x, x_0, calls };
    }
  },
};

const newest = {}; // the newest job of each kind

async function onMessage({ data }) {
  if (data.model) {
    processOfModel = data.process;
    shapeOfModel = data.shape;
    networks.page = predictor(data.model, data.shape, weightsOf(data.index, data.weights));
    return;
  }
  const { kind, job, request } = data;
  newest[kind] = job;
  if (job === null) return;
  try {
    let paused = performance.now();
    for (const message of TASKS[kind](request)) {
      if (message) self.postMessage({ kind, job, ...message });
      if (performance.now() - paused > SLICE) {
        await new Promise((resolve) => setTimeout(resolve));
        paused = performance.now();
      }
      if (newest[kind] !== job) return;
    }
    self.postMessage({ kind, job, done: true });
  } catch (error) {
    self.postMessage({ kind, job, error: String(error) });
  }
}

if (typeof self !== "undefined" && typeof window === "undefined") self.onmessage = onMessage;
