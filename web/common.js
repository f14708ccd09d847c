// What the pages of images and of points share: their content, and the worker (worker.js).

const content = JSON.parse(document.getElementById("model").textContent);
const byId = (id) => document.getElementById(id);
const { shape } = content;
const lessMotion = matchMedia("(prefers-reduced-motion: reduce)"); // show the end, not the way
let weights = null;

// The weights in the page: 32-bit floats of points, 16-bit ones of images. Raises an error if they
// are damaged.
async function readWeights() {
  const text = byId("weights").textContent.trim();
  const damaged = new Error("the weights in this page are damaged: export it again");
  let bytes;
  try {
    bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  } catch {
    throw damaged;
  }
  if (crypto.subtle) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hex = [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hex !== content.sha256) throw damaged;
  }
  return shape.dim ? new Float32Array(bytes.buffer) : new Uint16Array(bytes.buffer);
}

// A worker that has the network, and answers by onMessage(data)
function newWorker(onMessage, onError) {
  const source = new Blob([byId("engine").textContent], { type: "text/javascript" });
  const url = URL.createObjectURL(source);
  const made = new Worker(url);
  URL.revokeObjectURL(url);
  const { model, process, index } = content;
  made.postMessage({ model, process, shape, index, weights });
  made.onmessage = ({ data }) => onMessage(data);
  made.onerror = (event) => onError(event.message);
  return made;
}

// The size of x_t, by which pictures are divided
const spreadOf = ({ alpha, sigma }) => Math.sqrt(alpha ** 2 + sigma ** 2);

// The options of a list, from pairs of values and names
function fillOptions(id, options) {
  byId(id).replaceChildren(...options.map(([value, name]) => new Option(name, value)));
}
