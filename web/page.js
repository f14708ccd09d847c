// What the page of images does with its controls. The network runs in a worker (worker.js).

const pixels = shape.height * shape.width;
const RESAMPLINGS = 4; // of each step, to fill the marked part
let frames = []; // of the image that is drawn or was drawn last: {t, level, x, x_0, calls}
let worker = null;
let job = 0;
let started = 0;

// --- pictures ---

// x (C, H, W) in about [-1, 1], drawn into a canvas
function paint(canvas, x, scale = 1) {
  canvas.width = shape.width;
  canvas.height = shape.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const image = context.createImageData(shape.width, shape.height);
  for (let p = 0; p < pixels; p++) {
    for (let c = 0; c < 3; c++) {
      const value = x ? x[(shape.channels === 1 ? 0 : c) * pixels + p] / scale : -1;
      image.data[4 * p + c] = Math.round((Math.min(1, Math.max(-1, value)) + 1) * 127.5);
    }
    image.data[4 * p + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function show(number) {
  const frame = frames[number];
  if (!frame) return;
  paint(byId("noisy"), frame.x, spreadOf(frame.level));
  paint(byId("clean"), frame.x_0 ?? frame.x, frame.x_0 ? 1 : spreadOf(frame.level));
  const where = frame.t < 0 ? "clean" : `t = ${frame.t}`;
  byId("moment").textContent = `step ${number} of ${frames.length - 1}, ${where}`;
  byId("scrub").setAttribute("aria-valuetext", byId("moment").textContent);
}

// --- drawing ---

// The tokens of the prompt, the class, or null for a network without either
function labelOf() {
  if (content.captions) return tokensOf(byId("prompt").value, content.captions.words);
  return content.classes.length ? Number(byId("class").value) : null;
}

// Say which words the network has not learned, and refuse a prompt that is too long.
function checkPrompt() {
  const { words, length } = content.captions;
  const prompt = byId("prompt");
  const tokens = labelOf().length;
  const unknown = [...new Set(wordsOf(prompt.value))].filter((word) => !words.includes(word));
  prompt.setCustomValidity(tokens > length ? `the prompt has ${tokens} tokens; at most ${length} fit` : "");
  byId("unknown").textContent = unknown.length ? `not in the training captions: ${unknown.join(", ")}` : "";
}

function requestOf() {
  return {
    label: labelOf(),
    seed: Number(byId("seed").value),
    sampler: byId("sampler").value,
    steps: Number(byId("steps").value),
    guidance: content.guided ? Number(byId("guidance").value) : 1,
  };
}

function start(request, queued = false) {
  if (!byId("controls").reportValidity()) return;
  if (!queued) cancel();
  frames = [];
  worker ??= newWorker((data) => data.job === job && onFrame(data), fail);
  started = performance.now();
  byId("progress").max = request.strength
    ? Math.max(1, Math.round(request.steps * request.strength))
    : request.steps;
  byId("progress").value = 0;
  byId("cancel").disabled = false;
  byId("status").textContent = "drawing ...";
  worker.postMessage({ kind: "draw", job, request });
}

function cancel() {
  if (!byId("cancel").disabled) {
    worker.terminate();
    worker = null;
    byId("status").textContent = "cancelled";
  }
  byId("cancel").disabled = true;
  queue = [];
  job++;
}

function onFrame(data) {
  if (data.error) return fail(data.error);
  if (data.done) {
    const seconds = (performance.now() - started) / 1000;
    byId("status").textContent = `${frames.at(-1).calls} network calls in ${seconds.toFixed(1)} s`;
    byId("cancel").disabled = true;
    show(frames.length - 1);
    const drawn = queue.shift();
    if (drawn) {
      paint(drawn.canvas, frames.at(-1).x);
      drawn.caption.textContent = `${drawn.text}: ${byId("status").textContent.replace(" network", "")}`;
      drawNext();
    }
    return;
  }
  frames.push(data);
  byId("progress").value = data.step;
  byId("scrub").max = frames.length - 1;
  byId("scrub").value = frames.length - 1;
  byId("scrub").disabled = false;
  if (!lessMotion.matches) show(frames.length - 1);
}

function fail(message) {
  byId("status").textContent = `failed: ${message}`;
  byId("cancel").disabled = true;
}

// --- several images ---

let queue = []; // of {canvas, caption, request, text}

function drawAll(places, requests) {
  cancel();
  byId(places).replaceChildren();
  queue = requests.map(({ text, request }) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    const caption = document.createElement("figcaption");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", text);
    caption.textContent = text;
    figure.append(canvas, caption);
    byId(places).append(figure);
    paint(canvas, null);
    return { canvas, caption, request, text };
  });
  drawNext();
}

function drawNext() {
  if (queue.length) start(queue[0].request, true);
}

// The samplers at several numbers of steps, all from the same noise.
function compare() {
  const requests = [];
  for (const sampler of content.samplers) {
    const several = content.samplers.length > 1 ? [5, 10, 20] : [1, 2, 4];
    for (const steps of content.fixed_steps ? [content.steps] : several) {
      requests.push({ text: `${sampler}, ${steps} steps`, request: { ...requestOf(), sampler, steps } });
    }
  }
  drawAll("compared", requests);
}

// From the noise of the seed to that of another one.
function interpolate() {
  const other = Number(byId("other").value);
  const sampler = content.samplers.includes("dpmpp_2m") ? "dpmpp_2m" : content.samplers[0];
  const shares = [0, 1, 2, 3, 4, 5, 6].map((i) => i / 6);
  drawAll(
    "between",
    shares.map((share) => ({
      text: `${Math.round(100 * share)} %`,
      request: { ...requestOf(), sampler, other, share },
    }))
  );
}

// --- one's own picture ---

const own = new Float32Array(shape.channels * pixels).fill(-1);
const marked = new Float32Array(shape.channels * pixels); // 1: to be filled
let pressed = false;

function brush(event) {
  const box = byId("own").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * shape.width - 0.5;
  const y = ((event.clientY - box.top) / box.height) * shape.height - 0.5;
  const brushed = byId("brush").value;
  const [picture, value] = { draw: [own, 1], erase: [own, -1], mark: [marked, 1] }[brushed];
  const radius = Math.max(1, shape.width / 22);
  for (let row = 0; row < shape.height; row++) {
    for (let column = 0; column < shape.width; column++) {
      const share = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(column - x, row - y)));
      for (let c = 0; c < shape.channels; c++) {
        const at = c * pixels + row * shape.width + column;
        picture[at] += share * (value - picture[at]);
      }
    }
  }
  paintOwn();
}

// The marked pixels in colour, over the picture
function paintMarked() {
  const context = byId("own").getContext("2d", { willReadFrequently: true });
  context.fillStyle = "rgba(255, 140, 0, 0.7)";
  for (let p = 0; p < pixels; p++) {
    if (marked[p] > 0.5) context.fillRect(p % shape.width, Math.floor(p / shape.width), 1, 1);
  }
}

// q(x_t | x_0) of the picture, at the timestep of the slider
function paintOwn() {
  paint(byId("own"), own);
  paintMarked();
  const t = Number(byId("forward").value);
  const level = t < 0 ? { alpha: 1, sigma: 0 } : { alpha: content.process.alpha[t], sigma: content.process.sigma[t] };
  const noise = new Generator(imageSeed(Number(byId("seed").value), 0)).normal(own.length);
  const noisy = own.map((value, i) => level.alpha * value + level.sigma * noise[i]);
  paint(byId("noised"), noisy, spreadOf(level));
  byId("signal").textContent = t < 0 ? "no noise" : `t = ${t}: ${level.alpha.toFixed(2)} x_0 + ${level.sigma.toFixed(2)} noise`;
}

// --- the controls ---

function connect() {
  fillOptions("class", [...content.classes.map((name, i) => [i, name]), [-1, "any class"]]);
  fillOptions("sampler", content.samplers.map((name) => [name, name]));
  if (content.captions) {
    byId("prompts").replaceChildren(...content.captions.prompts.map((prompt) => new Option(prompt)));
    byId("prompt").value = content.captions.prompts[0];
    byId("prompt").oninput = checkPrompt;
  }
  for (const node of document.querySelectorAll(".captioned")) node.hidden = !content.captions;
  byId("fill").hidden = byId("mark").hidden = !content.samplers.includes("ddpm");
  for (const node of document.querySelectorAll(".conditional")) node.hidden = !content.classes.length;
  for (const node of document.querySelectorAll(".guided")) node.hidden = !content.guided;
  byId("steps").disabled = content.fixed_steps;
  byId("steps").value = content.steps;
  byId("guidance").value = content.guidance;
  byId("forward").max = content.process.alpha.length - 1;
  byId("controls").onsubmit = (event) => {
    event.preventDefault();
    start(requestOf());
  };
  byId("cancel").onclick = cancel;
  byId("another").onclick = () => {
    byId("seed").value = Number(byId("seed").value) + 1;
    start(requestOf());
  };
  byId("compare").onclick = compare;
  byId("interpolate").onclick = interpolate;
  byId("scrub").oninput = () => show(Number(byId("scrub").value));
  const canvas = byId("own");
  canvas.onpointerdown = (event) => {
    pressed = true;
    canvas.setPointerCapture(event.pointerId);
    brush(event);
  };
  canvas.onpointermove = (event) => pressed && brush(event);
  canvas.onpointerup = canvas.onpointercancel = () => (pressed = false);
  byId("forward").oninput = paintOwn;
  byId("clear").onclick = () => {
    own.fill(-1);
    marked.fill(0);
    paintOwn();
  };
  byId("copy").onclick = () => {
    const last = frames.at(-1);
    if (last) own.set(last.x.map((value) => Math.min(1, Math.max(-1, value))));
    paintOwn();
  };
  byId("redraw").onclick = () =>
    start({ ...requestOf(), start: own.slice(), strength: Number(byId("strength").value) });
  byId("fill").onclick = () => {
    const mask = marked.map((value) => (value > 0.5 ? 0 : 1));
    start({ ...requestOf(), known: own.slice(), mask, resamplings: RESAMPLINGS });
  };
}

async function main() {
  connect();
  paint(byId("noisy"), null);
  paint(byId("clean"), null);
  paintOwn();
  try {
    weights = await readWeights();
  } catch (error) {
    return fail(error.message);
  }
  for (const id of ["draw", "another", "redraw", "fill", "compare", "interpolate"]) byId(id).disabled = false;
  byId("status").textContent = "ready";
}

main();
