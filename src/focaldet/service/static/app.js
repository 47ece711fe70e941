"use strict";
// The page of the service: images go to /predict with a score of 0; score and classes are then chosen here.

const part = (id) => document.getElementById(id);
const state = { images: [], current: -1, score: 0.3, hidden: new Set(), classes: [], maxBytes: Infinity, name: "",
  session: null, camera: null, live: null, waiting: [], running: 0 };
const AT_A_TIME = 2, TRIES = 20;
let token = sessionStorage.getItem("token") || "";

// Talking to the server

async function call(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${encodeURIComponent(token)}` } : {};
  for (let attempt = 1; ; attempt++) {
    const answer = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
    if (answer.status === 503 && attempt < TRIES) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("Retry-After") || 1)));
      continue;
    }
    if (answer.status === 401) askForToken();
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.error);
    return content;
  }
}

function askForToken() {
  part("login").hidden = false;
  part("token").focus();
}

async function start() {
  try {
    const info = await call("info");
    Object.assign(state, { classes: info.classes, maxBytes: info.max_bytes, name: info.name });
    part("login").hidden = true;
    setScore(info.score);
    part("title").textContent = `Object detection: ${info.name}`;
    document.title = `${info.name}: object detection`;
    show();
  } catch (error) {
    tell(token ? error.message : "", true);
  }
}

async function detect(blob) {
  if (blob.size > state.maxBytes) throw new Error(`the file has ${(blob.size / 1e6).toFixed(1)} MB, at most ${state.maxBytes / 1e6} MB are taken`);
  return call("predict?score=0", { method: "POST", body: blob, headers: { "Content-Type": "application/octet-stream" } });
}

// Images

function add(files) {
  stopCamera();
  const first = state.images.length;
  for (const file of files) {
    const entry = { name: file.name || "image", file, url: URL.createObjectURL(file), answer: null, error: null };
    state.images.push(entry);
    state.waiting.push(entry);
  }
  if (state.images.length > first) select(first);
  work();
}

async function work() {
  if (state.running >= AT_A_TIME || !state.waiting.length) return;
  state.running++;
  const entry = state.waiting.shift();
  work();
  try {
    entry.answer = await detect(entry.file);
  } catch (error) {
    entry.error = error instanceof TypeError ? "the server does not answer" : error.message;
  }
  state.running--;
  show();
  work();
}

function select(index) {
  state.current = Math.max(-1, Math.min(index, state.images.length - 1));
  show();
  if (state.current < 0) return;
  const strip = part("strip"), { offsetLeft: left, offsetWidth: width } = state.images[state.current].button;
  strip.scrollLeft = Math.max(left + width + 3 - strip.clientWidth, Math.min(strip.scrollLeft, left - 3));
}

function remove() {
  if (state.camera) return; // the selected image is not the one that is shown
  const [entry] = state.images.splice(state.current, 1);
  if (!entry) return;
  URL.revokeObjectURL(entry.url);
  state.waiting = state.waiting.filter((other) => other !== entry);
  select(Math.min(state.current, state.images.length - 1));
}

// What is shown

const visible = (answer) => answer.predictions.filter((one) => one.confidence >= state.score && !state.hidden.has(one.name));
const shown = () => (state.camera ? state.live : state.images[state.current]);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function colorOf(one) {
  return (state.classes[one.class] || { color: "#1f5fbf" }).color;
}

function inkOn(color) {
  const [r, g, b] = [1, 3, 5].map((k) => parseInt(color.slice(k, k + 2), 16) / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
}

function tell(text, isError = false) {
  part("status").textContent = text;
  part("status").classList.toggle("error", isError);
}

function show() {
  const entry = shown();
  const answer = entry && entry.answer;
  part("empty").hidden = Boolean(entry);
  part("frame").hidden = !entry || Boolean(entry.error);
  part("image").hidden = Boolean(state.camera);
  part("video").hidden = !state.camera;
  if (entry && !state.camera && part("image").src !== entry.url) {
    part("image").src = entry.url;
    part("image").alt = entry.name;
  }
  if (answer) fit(answer.image.width, answer.image.height);
  showBoxes(answer);
  showClasses(answer);
  showDetections(answer);
  showStrip();
  for (const id of ["json", "coco"]) part(id).disabled = !state.images.some((one) => one.answer);
  if (!entry) tell("");
  else if (entry.error) tell(`${entry.name}: ${entry.error}`, true);
  else if (!answer) tell(state.camera ? "starting the camera …" : `${entry.name}: detecting …`);
  else tell(`${entry.name}: ${answer.image.width} × ${answer.image.height} px, ${answer.time_ms.total.toFixed(0)} ms`);
}

function fit(width, height) {
  part("frame").style.aspectRatio = `${width} / ${height}`;
  part("frame").style.width = `min(100%, calc(72vh * ${width / height}))`;
}

function showBoxes(answer) {
  const boxes = answer ? visible(answer).reverse().map((one) => {
    const { width, height } = answer.image, { x1, y1, x2, y2 } = one.box, color = colorOf(one);
    const label = element("span", { textContent: `${one.name} ${one.confidence.toFixed(2)}` });
    const made = element("div", { className: "box" }, label);
    made.style.setProperty("--color", color);
    made.style.setProperty("--on", inkOn(color));
    Object.assign(made.style, { left: `${100 * x1 / width}%`, top: `${100 * y1 / height}%`,
      width: `${100 * (x2 - x1) / width}%`, height: `${100 * (y2 - y1) / height}%` });
    made.classList.toggle("low", y1 / height < 0.05);
    made.detection = one;
    return made;
  }) : [];
  part("boxes").replaceChildren(...boxes);
  keepLabelsInside();
}

// A label that would leave the image on its right moves to the left, as far as there is room.
function keepLabelsInside() {
  const whole = part("boxes").clientWidth;
  const moves = [...part("boxes").children].map((box) => [box, whole - box.offsetLeft - box.firstChild.offsetWidth]);
  for (const [box, room] of moves) box.firstChild.style.left = room < 2 ? `${Math.max(room, -box.offsetLeft) - 2}px` : "";
}

function showClasses(answer) {
  const counts = {};
  for (const one of answer ? answer.predictions : []) if (one.confidence >= state.score) counts[one.name] = (counts[one.name] || 0) + 1;
  const list = part("classes");
  if (list.children.length !== state.classes.length) {
    list.replaceChildren(...state.classes.map((one) => {
      const tick = element("input", { type: "checkbox", checked: true });
      tick.addEventListener("change", () => toggle(one.name, !tick.checked));
      const dot = element("span", { className: "dot" });
      dot.style.setProperty("--color", one.color);
      return element("li", {}, element("label", {}, tick, dot, element("span", { className: "name", textContent: one.name }), element("b")));
    }));
  }
  state.classes.forEach((one, index) => {
    list.children[index].querySelector("input").checked = !state.hidden.has(one.name);
    list.children[index].querySelector("b").textContent = counts[one.name] || "";
  });
}

function showDetections(answer) {
  const chosen = answer ? visible(answer) : [];
  part("count").textContent = answer ? String(chosen.length) : "";
  part("detections").replaceChildren(...chosen.slice(0, 200).map((one) => {
    const dot = element("span", { className: "dot" });
    dot.style.setProperty("--color", colorOf(one));
    const row = element("li", { tabIndex: 0 }, dot, element("span", { className: "name", textContent: one.name }),
      element("b", { textContent: one.confidence.toFixed(2) }));
    const mark = (on) => [...part("boxes").children].forEach((box) => box.classList.toggle("marked", on && box.detection === one));
    for (const kind of ["mouseenter", "focus"]) row.addEventListener(kind, () => mark(true));
    for (const kind of ["mouseleave", "blur"]) row.addEventListener(kind, () => mark(false));
    return row;
  }));
}

function showStrip() {
  const strip = part("strip");
  strip.hidden = state.images.length < 2 && !state.camera;
  const buttons = state.images.map((entry, index) => {
    entry.button ||= thumbnail(entry);
    entry.button.lastChild.textContent = entry.error ? "!" : entry.answer ? String(visible(entry.answer).length) : "…";
    entry.button.setAttribute("aria-selected", String(index === state.current && !state.camera));
    if (entry.error && !entry.button.classList.contains("failed")) {
      entry.button.classList.add("failed");
      entry.button.firstChild.remove();
    }
    return entry.button;
  });
  const isSame = buttons.length === strip.children.length && buttons.every((button, index) => button === strip.children[index]);
  if (!isSame) strip.replaceChildren(...buttons);
}

// Made once for each image: an image that is made anew is decoded anew, with each step of the slider.
function thumbnail(entry) {
  const button = element("button", { type: "button", title: entry.name },
    element("img", { src: entry.url, alt: entry.name }), element("i"));
  button.setAttribute("role", "option");
  button.addEventListener("click", () => { stopCamera(); select(state.images.indexOf(entry)); });
  return button;
}

function setScore(value) {
  state.score = Math.round(100 * Math.max(0, Math.min(1, value))) / 100;
  part("score").value = state.score;
  part("score-text").textContent = state.score.toFixed(2);
  show();
}

function toggle(name, hide = !state.hidden.has(name)) {
  state.hidden[hide ? "add" : "delete"](name);
  show();
}

function toggleAll(hide = state.hidden.size === 0) {
  state.hidden = new Set(hide ? state.classes.map((one) => one.name) : []);
  show();
}

// Downloads: what is visible of all images

function download(name, value) {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const answered = () => state.images.filter((entry) => entry.answer);

function downloadJson() {
  if (!answered().length) return;
  download("detections.json", answered().map((entry) => ({ file: entry.name, ...entry.answer.image, predictions: visible(entry.answer) })));
}

function downloadCoco() {
  if (!answered().length) return;
  const images = [], annotations = [];
  const categories = new Map(state.classes.map(({ id, name }) => [id, name])); // none where a detector has no names
  answered().forEach((entry, index) => {
    images.push({ id: index + 1, file_name: entry.name, ...entry.answer.image });
    for (const one of visible(entry.answer)) {
      const { x1, y1, x2, y2 } = one.box, named = state.classes[one.class], category = named ? named.id : one.class + 1;
      if (!named) categories.set(category, one.name);
      annotations.push({ id: annotations.length + 1, image_id: index + 1, category_id: category,
        bbox: [x1, y1, x2 - x1, y2 - y1], area: (x2 - x1) * (y2 - y1), iscrowd: 0, score: one.confidence });
    }
  });
  download("coco.json", { images, categories: [...categories].map(([id, name]) => ({ id, name })), annotations });
}

// Camera

// A session lasts from one press of the button to the next; what an earlier one still waits for comes to nothing.
async function toggleCamera() {
  if (state.session) return stopCamera();
  const session = state.session = {}, isOver = () => state.session !== session;
  try {
    const camera = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    if (isOver()) return stopTracks(camera);
    Object.assign(state, { camera, live: { name: "camera", answer: null, error: null } });
    part("camera").textContent = "Stop camera";
    part("video").srcObject = camera;
    await part("video").play();
  } catch (error) {
    if (isOver()) return;
    stopCamera();
    return tell(`the camera cannot be used: ${error.message}`, true);
  }
  if (isOver()) return;
  fit(part("video").videoWidth, part("video").videoHeight);
  show();
  while (!isOver()) {
    try {
      const answer = await detect(await grab());
      if (isOver()) return;
      state.live.answer = answer;
      show();
    } catch (error) {
      if (isOver()) return;
      tell(error.message, true);
      await new Promise((done) => setTimeout(done, 500));
    }
  }
}

function stopTracks(camera) {
  for (const track of camera.getTracks()) track.stop();
}

function grab() {
  const video = part("video"), canvas = element("canvas", { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
}

function stopCamera() {
  if (!state.session) return;
  if (state.camera) stopTracks(state.camera);
  state.session = state.camera = state.live = part("video").srcObject = null;
  part("camera").textContent = "Camera";
  show();
}

async function keepFrame() {
  if (state.camera && part("video").videoWidth) add([new File([await grab()], `camera_${state.images.length + 1}.jpg`, { type: "image/jpeg" })]);
}

// Hands and keys

part("open").addEventListener("click", () => part("files").click());
part("empty").addEventListener("click", () => part("files").click());
part("files").addEventListener("change", () => { add(part("files").files); part("files").value = ""; });
part("score").addEventListener("input", () => setScore(Number(part("score").value)));
part("all").addEventListener("click", () => toggleAll(false));
part("none").addEventListener("click", () => toggleAll(true));
part("json").addEventListener("click", downloadJson);
part("coco").addEventListener("click", downloadCoco);
part("camera").addEventListener("click", toggleCamera);
part("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = part("token").value;
  sessionStorage.setItem("token", token);
  start();
});
document.addEventListener("dragover", (event) => { event.preventDefault(); part("stage").classList.add("over"); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) part("stage").classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  part("stage").classList.remove("over");
  add(event.dataTransfer.files);
});
new ResizeObserver(keepLabelsInside).observe(part("frame"));
document.addEventListener("paste", (event) => add(event.clipboardData.files));

const KEYS = {
  o: () => part("files").click(), ArrowLeft: () => select(Math.max(0, state.current - 1)), ArrowRight: () => select(state.current + 1),
  "+": () => setScore(state.score + 0.05), "=": () => setScore(state.score + 0.05), "-": () => setScore(state.score - 0.05),
  a: () => toggleAll(), j: downloadJson, d: downloadCoco, s: keepFrame, Delete: remove, c: () => { if (!part("camera").hidden) toggleCamera(); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "password") return;
  if (event.target.type === "range" && event.key.startsWith("Arrow")) return;
  const one = state.classes[Number(event.key) - 1];
  const act = one ? () => toggle(one.name) : KEYS[event.key];
  if (!act) return;
  event.preventDefault();
  act();
});

part("camera").hidden = !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
start();
