// What the page of points does with its controls. The networks run in a worker (worker.js): that of
// the page, and one that is trained in it.

const EXTENT = 3; // a plane shows [-EXTENT, EXTENT] of both coordinates, as visuals.pictures
const SIDE = 640; // pixels of a plane
const ARROWS = 21; // in each direction
const PATHS = 60; // trajectories that are shown
const MOST = 3; // length of the longest arrow
const FEWEST = 50; // points to train on
const LIMIT = 5000; // points that are kept
const SPRAY = 8; // points for each touch of the brush
const STRIDE = 0.15; // of an arrow key
const SAMPLER = "dpmpp_2m"; // that the page begins with: without fresh noise, trajectories are smooth

const { process, classes } = content;
const ANY = -1;
const IN_TURN = -2; // classes in turn: point i has class i modulo their number
const jobs = {}; // the newest job of each kind: draw, field, train
let numbered = 0;
let worker = null;
let frames = []; // of the points that are drawn or were drawn last: {t, level, x, x_0, calls}
let samples = null; // (N, 2), drawn last
let field = null; // {t, arrows (M, 2)}
let outdated = false; // the arrows that are being computed are no longer those to show
let learned = null; // samples of the network that is trained in the page
let own = []; // coordinates of one's own points, one after the other
let started = {};

// --- the worker ---

const ANSWERS = { draw: onFrame, field: onField, train: onTraining };

function send(kind, request) {
  jobs[kind] = ++numbered;
  started[kind] = performance.now();
  worker.postMessage({ kind, job: numbered, request });
}

function end(kind) {
  jobs[kind] = null;
  worker.postMessage({ kind, job: null });
}

function onAnswer(data) {
  if (data.job === jobs[data.kind]) ANSWERS[data.kind](data);
}

const secondsOf = (kind) => ((performance.now() - started[kind]) / 1000).toFixed(1);

function fail(message) {
  byId("status").textContent = `failed: ${message}`;
  byId("cancel").disabled = true;
}

// --- planes ---

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name);
const place = (value) => ((value / EXTENT + 1) * SIDE) / 2;
const levelOf = (t) => (t < 0 ? { alpha: 1, sigma: 0 } : { alpha: process.alpha[t], sigma: process.sigma[t] });

// An empty plane with its axes
function cleared(id) {
  const canvas = byId(id);
  [canvas.width, canvas.height] = [SIDE, SIDE];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = colour("--page");
  context.fillRect(0, 0, SIDE, SIDE);
  context.fillStyle = colour("--line");
  context.fillRect(0, SIDE / 2, SIDE, 1);
  context.fillRect(SIDE / 2, 0, 1, SIDE);
  return context;
}

// Points (N, 2), divided by a scale
function dots(context, points, paint, scale = 1, radius = 4) {
  context.fillStyle = colour(paint);
  for (let i = 0; i < points.length; i += 2) {
    context.beginPath();
    context.arc(place(points[i] / scale), SIDE - place(points[i + 1] / scale), radius, 0, 2 * Math.PI);
    context.fill();
  }
}

// The way of the first points, from the noise to frame `last`
function drawTrajectories(context, last) {
  context.strokeStyle = colour("--soft");
  context.lineWidth = 1.5;
  for (let i = 0; i < 2 * Math.min(PATHS, frames[0].x.length / 2); i += 2) {
    context.beginPath();
    for (const { x, level } of frames.slice(0, last + 1)) {
      const scale = spreadOf(level);
      context.lineTo(place(x[i] / scale), SIDE - place(x[i + 1] / scale));
    }
    context.stroke();
  }
}

// Arrows (M, 2) at the positions of the lattice; their length is that of the vector, up to a limit
function drawArrows(context, arrows) {
  const positions = lattice();
  const cell = (2 * EXTENT) / (ARROWS + 1);
  context.strokeStyle = colour("--accent");
  context.lineWidth = 2;
  for (let i = 0; i < arrows.length; i += 2) {
    const norm = Math.hypot(arrows[i], arrows[i + 1]);
    const length = (cell * (0.2 + 0.8 * Math.min(norm, MOST) / MOST)) / (norm || 1);
    const [x, y] = [place(positions[i]), SIDE - place(positions[i + 1])];
    const [dx, dy] = [(length * arrows[i] * SIDE) / (2 * EXTENT), (-length * arrows[i + 1] * SIDE) / (2 * EXTENT)];
    const [tipX, tipY] = [x + dx, y + dy];
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(tipX, tipY);
    context.moveTo(tipX - 0.35 * dx - 0.25 * dy, tipY - 0.35 * dy + 0.25 * dx);
    context.lineTo(tipX, tipY);
    context.lineTo(tipX - 0.35 * dx + 0.25 * dy, tipY - 0.35 * dy - 0.25 * dx);
    context.stroke();
  }
}

// visuals.score_field.lattice: the positions of the arrows (M, 2)
function lattice() {
  const line = Array.from({ length: ARROWS }, (_, i) => EXTENT * ((2 * (i + 1)) / (ARROWS + 1) - 1));
  return Float32Array.from(line.flatMap((x) => line.flatMap((y) => [x, y])));
}

// q(x_t | x_0) of points, in units of the network's input
function withNoise(points, t) {
  const { alpha, sigma } = levelOf(t);
  const noise = new Generator(Number(byId("seed").value)).normal(Math.max(16, points.length));
  return Float32Array.from(points, (value, i) => (alpha * value + sigma * noise[i]) / spreadOf({ alpha, sigma }));
}

function signalOf(t) {
  const { alpha, sigma } = levelOf(t);
  return t < 0 ? "no noise" : `t = ${t}: ${alpha.toFixed(2)} x_0 + ${sigma.toFixed(2)} noise`;
}

// --- drawing ---

const isOwn = () => byId("network").value === "own";
const isConditional = () => classes.length > 0 && !isOwn();

function labelOf(count) {
  if (!isConditional()) return null;
  const chosen = Number(byId("class").value);
  if (chosen !== IN_TURN) return chosen;
  return Array.from({ length: count }, (_, i) => i % classes.length);
}

function guidanceOf() {
  return content.guided && isConditional() ? Number(byId("guidance").value) : 1;
}

function startDrawing() {
  if (!byId("controls").reportValidity()) return;
  const count = Number(byId("count").value);
  const steps = Number(byId("steps").value);
  frames = [];
  byId("progress").max = steps;
  byId("progress").value = 0;
  byId("cancel").disabled = false;
  byId("status").textContent = "drawing ...";
  const [seed, sampler] = [Number(byId("seed").value), byId("sampler").value];
  const [network, label, guidance] = [byId("network").value, labelOf(count), guidanceOf()];
  send("draw", { network, label, guidance, count, seed, sampler, steps });
}

function onFrame(data) {
  if (data.error) return fail(data.error);
  if (data.done) {
    byId("status").textContent = `${frames.at(-1).calls} network calls in ${secondsOf("draw")} s`;
    byId("cancel").disabled = true;
    samples = frames.at(-1).x;
    byId("copy").disabled = false;
    show(frames.length - 1);
    paintForward();
    askForField();
    return;
  }
  frames.push(data);
  byId("progress").value = data.step;
  byId("scrub").max = frames.length - 1;
  byId("scrub").value = frames.length - 1;
  byId("scrub").disabled = false;
  if (!lessMotion.matches) show(frames.length - 1);
}

function show(number) {
  const frame = frames[number];
  const [noisy, clean] = [cleared("noisy"), cleared("clean")];
  if (!frame) return;
  if (byId("trajectories").checked) drawTrajectories(noisy, number);
  dots(noisy, frame.x, "--accent", spreadOf(frame.level));
  dots(clean, frame.x_0 ?? frame.x, "--accent", frame.x_0 ? 1 : spreadOf(frame.level));
  const where = frame.t < 0 ? "clean" : `t = ${frame.t}`;
  byId("moment").textContent = `step ${number} of ${frames.length - 1}, ${where}`;
  byId("scrub").setAttribute("aria-valuetext", byId("moment").textContent);
}

// --- noise and score ---

function askForField() {
  if (!worker || !(content.has_score || isOwn())) return;
  outdated = Boolean(jobs.field);
  if (outdated) return;
  const t = Math.max(0, Number(byId("forward").value));
  const label = isConditional() ? Math.max(ANY, Number(byId("class").value)) : null;
  send("field", { network: byId("network").value, t, positions: lattice(), label, guidance: guidanceOf() });
}

function onField(data) {
  if (data.arrows) {
    field = data;
    return paintForward();
  }
  jobs.field = null;
  if (data.error) fail(data.error);
  else if (outdated) askForField();
}

function paintForward() {
  const t = Number(byId("forward").value);
  const points = withNoise(samples ?? [], t);
  dots(cleared("noised"), points, "--accent");
  const arrows = cleared("arrows");
  dots(arrows, points, "--line");
  if (field) drawArrows(arrows, field.arrows);
  byId("signal").textContent = signalOf(t);
  byId("forward").setAttribute("aria-valuetext", signalOf(t));
}

// --- one's own distribution ---

const random = new Generator(0);
let pressed = false;
let cursor = null; // [x, y] of the keyboard's brush

// Some points around a place
function spray(x, y) {
  const radius = Number(byId("brush").value);
  const offsets = random.normal(2 * SPRAY);
  for (let i = 0; i < 2 * SPRAY && own.length < 2 * LIMIT; i += 2) {
    own.push(x + radius * offsets[i], y + radius * offsets[i + 1]);
  }
  paintOwn();
}

function brush(event) {
  const box = byId("own").getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * 2 - 1;
  const y = 1 - ((event.clientY - box.top) / box.height) * 2;
  spray(EXTENT * x, EXTENT * y);
}

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], " ": [0, 0] };

function onKey(event) {
  const way = KEYS[event.key];
  if (!way) return;
  event.preventDefault(); // the page does not scroll
  cursor = (cursor ?? [0, 0]).map((value, i) => Math.min(EXTENT, Math.max(-EXTENT, value + STRIDE * way[i])));
  if (event.key === " ") spray(...cursor);
  paintOwn();
}

function paintOwn() {
  const t = Number(byId("fade").value);
  const context = cleared("own");
  dots(context, own, "--own");
  if (cursor) {
    context.strokeStyle = colour("--text");
    context.lineWidth = 3;
    context.beginPath();
    context.arc(place(cursor[0]), SIDE - place(cursor[1]), 14, 0, 2 * Math.PI);
    context.stroke();
  }
  dots(cleared("faded"), withNoise(own, t), "--own");
  const count = own.length / 2;
  const full = count >= LIMIT ? " (no more fit)" : "";
  byId("counted").textContent = count ? `x_0, your ${count} points${full}` : "x_0, no points yet: draw here";
  byId("fading").textContent = signalOf(t);
  byId("fade").setAttribute("aria-valuetext", signalOf(t));
  if (!jobs.train) {
    byId("train").disabled = !worker || count < FEWEST;
    if (count < FEWEST) byId("report").textContent = `Draw at least ${FEWEST} points to train on.`;
    else if (!learned && !isOwn()) byId("report").textContent = "ready to train";
  }
}

function paintLearned() {
  const context = cleared("learned");
  if (learned) dots(context, learned, "--own");
}

// --- training ---

function startTraining() {
  const steps = Number(byId("length").value);
  byId("trained").max = steps;
  byId("trained").value = 0;
  byId("train").disabled = true;
  byId("stop").disabled = false;
  byId("report").textContent = "training ...";
  byId("learning").textContent = "samples of your network: none yet";
  learned = null;
  paintLearned();
  send("train", { points: Float32Array.from(own), steps, seed: Number(byId("seed").value) });
}

function onTraining(data) {
  if (data.error) {
    finishTraining(`failed: ${data.error}`);
  } else if (data.done) {
    const { value } = byId("trained");
    finishTraining(`trained ${value} steps in ${secondsOf("train")} s; "network" above is now yours`);
    useOwn();
  } else {
    byId("trained").value = data.step;
    byId("report").textContent = `step ${data.step} of ${data.steps}, loss ${data.loss.toFixed(3)}`;
    if (!data.samples) return;
    learned = data.samples;
    byId("learning").textContent = `samples of your network after ${data.step} steps`;
    paintLearned();
  }
}

function finishTraining(text) {
  jobs.train = null;
  byId("stop").disabled = true;
  byId("train").disabled = own.length < 2 * FEWEST;
  byId("report").textContent = text;
}

// If the training is stopped, the page draws with the network of that moment.
function stopTraining() {
  end("train");
  const step = byId("trained").value;
  finishTraining(`stopped after ${step} steps`);
  if (step > 0) useOwn();
}

function useOwn() {
  const option = [...byId("network").options].find(({ value }) => value === "own");
  option.disabled = false;
  byId("network").value = "own";
  onNetwork();
  startDrawing();
}

// --- the controls ---

// Show what the chosen network has.
function onNetwork() {
  const mine = isOwn();
  for (const node of document.querySelectorAll(".conditional")) node.hidden = !isConditional();
  for (const node of document.querySelectorAll(".guided")) node.hidden = !(content.guided && isConditional());
  for (const node of document.querySelectorAll(".scored")) node.hidden = !(content.has_score || mine);
  const known = mine ? content.denoisers : content.samplers;
  const before = byId("sampler").value;
  fillOptions("sampler", known.map((name) => [name, name]));
  byId("sampler").value = [before, SAMPLER, known[0]].find((name) => known.includes(name));
  byId("steps").disabled = content.fixed_steps && !mine;
  if (byId("steps").disabled) byId("steps").value = content.steps;
}

function connect() {
  fillOptions("network", [["page", "of this page"], ["own", "your own"]]);
  byId("network").options[1].disabled = true;
  const several = [[IN_TURN, "all in turn"], [ANY, "any class"]];
  fillOptions("class", [...several, ...classes.map((name, i) => [i, name])]);
  byId("steps").value = Math.min(content.steps, process.alpha.length);
  byId("guidance").value = content.guidance;
  byId("forward").value = Math.floor(0.3 * process.alpha.length);
  onNetwork();
  byId("network").onchange = () => {
    onNetwork();
    startDrawing();
  };
  byId("controls").onsubmit = (event) => {
    event.preventDefault();
    startDrawing();
  };
  byId("another").onclick = () => {
    byId("seed").value = Number(byId("seed").value) + 1;
    startDrawing();
  };
  byId("cancel").onclick = () => {
    end("draw");
    byId("cancel").disabled = true;
    byId("status").textContent = "cancelled";
  };
  byId("scrub").oninput = byId("trajectories").oninput = () => show(Number(byId("scrub").value));
  byId("forward").oninput = () => {
    paintForward();
    askForField();
  };
  const canvas = byId("own");
  canvas.onpointerdown = (event) => {
    pressed = true;
    canvas.setPointerCapture(event.pointerId);
    brush(event);
  };
  canvas.onpointermove = (event) => pressed && brush(event);
  canvas.onpointerup = canvas.onpointercancel = () => (pressed = false);
  canvas.onkeydown = onKey;
  canvas.onfocus = () => {
    cursor = canvas.matches(":focus-visible") ? [0, 0] : null;
    paintOwn();
  };
  canvas.onblur = () => {
    cursor = null;
    paintOwn();
  };
  byId("fade").oninput = paintOwn;
  byId("clear").onclick = () => {
    own = [];
    paintOwn();
  };
  byId("copy").onclick = () => {
    own = Array.from(samples.subarray(0, 2 * LIMIT));
    paintOwn();
  };
  byId("copy").disabled = true;
  byId("training").onsubmit = (event) => {
    event.preventDefault();
    startTraining();
  };
  byId("stop").onclick = stopTraining;
  matchMedia("(prefers-color-scheme: dark)").onchange = paintAll;
}

function paintAll() {
  show(Number(byId("scrub").value));
  paintForward();
  paintOwn();
  paintLearned();
}

async function main() {
  connect();
  paintAll();
  try {
    weights = await readWeights();
    worker = newWorker(onAnswer, fail);
  } catch (error) {
    return fail(error.message);
  }
  for (const id of ["draw", "another"]) byId(id).disabled = false;
  byId("status").textContent = "ready";
  paintOwn();
  startDrawing();
}

main();
