"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const PER_PAGE = 24, MARGIN = 0.8, LEAST_CROP = 60;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const images = data.images.map(([file, id, width, height, rows], index) => ({
  index, file, id, width, height,
  examples: rows.map(([kind, isObject, label, box, size, classLoss, boxLoss, detection]) => ({
    kind, isObject: Boolean(isObject), label, box, size, loss: classLoss + boxLoss,
    detection: detection && { label: detection[0], score: detection[1], box: detection[2] },
  })),
}));
const suspects = data.suspects.map(([image, problem, suspicion, annotated, proposed], index) => ({
  index, image, problem, suspicion,
  annotated: annotated && { label: annotated[0], box: annotated[1] },
  proposed: proposed && { label: proposed[0], box: proposed[1] },
}));
const fields = one(".filters").elements, dialog = one("dialog"), tiles = one(".tiles");
const state = { view: "images", page: 0, current: 0, shown: [], detections: true };

// What is ticked is kept across reloads where the browser allows it.
const storeKey = `focaldet ${data.fingerprint} ${data.suspects.length}`;
const ticked = new Set();
try { JSON.parse(localStorage.getItem(storeKey) || "[]").forEach((index) => ticked.add(index)); } catch { /* private window */ }
function saveTicks() { try { localStorage.setItem(storeKey, JSON.stringify([...ticked])); } catch { /* private window */ } }

const name = (label) => data.classes[label];
const color = (loss) => `hsl(${(120 * Math.exp(-loss)).toFixed(0)} 85% ${loss > 1.2 ? 48 : 40}%)`;

function node(tag, attributes = {}, ...children) {
  const svg = ["svg", "image", "rect", "title"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function photo(image, boxes, view = [0, 0, image.width, image.height]) {
  const made = node("svg", { class: "photo", viewBox: view.join(" "), role: "img", "aria-label": image.file });
  made.append(node("image", { href: `pictures/${image.index}.jpg`, width: image.width, height: image.height, preserveAspectRatio: "none" }));
  for (const { box: [x1, y1, x2, y2], kind = "", stroke, title = "", index } of boxes) {
    const corners = { x: x1, y: y1, width: Math.max(0, x2 - x1), height: Math.max(0, y2 - y1) };
    made.append(node("rect", { ...corners, class: "halo" }));
    const look = { ...corners, class: kind, ...(stroke && { style: `stroke: ${stroke}` }), ...(index !== undefined && { "data-index": index }) };
    made.append(node("rect", look, node("title", {}, title)));
  }
  return made;
}

// ---- images ----

function isShown(example) {
  if (!kindsWanted.has(example.kind)) return false;
  if (fields.label.value !== "" && example.label !== Number(fields.label.value)) return false;
  if (fields.size.value !== "" && example.size !== Number(fields.size.value)) return false;
  return example.loss >= Number(fields.loss.value);
}
let kindsWanted = new Set(data.kinds.keys());

function shownImages() {
  const part = fields.file.value.toLowerCase(), order = fields.order.value;
  const shown = [];
  for (const image of images) {
    if (part && !image.file.toLowerCase().includes(part)) continue;
    const examples = image.examples.filter(isShown);
    if (!examples.length) continue;
    const losses = examples.map((example) => example.loss), sum = losses.reduce((a, b) => a + b, 0);
    const most = losses.reduce((a, b) => Math.max(a, b), 0);
    shown.push({ image, examples, most, sum, mean: sum / losses.length, easy: -most });
  }
  if (order === "file") return shown.sort((a, b) => (a.image.file < b.image.file ? -1 : 1));
  return shown.sort((a, b) => b[order] - a[order] || a.image.index - b.image.index);
}

function describe(example) {
  const text = example.detection ? `detector: ${name(example.detection.label)} ${example.detection.score.toFixed(2)}` : "detector: nothing";
  return `${example.isObject ? "" : "false positive, "}${data.kinds[example.kind]}: ${name(example.label)}, loss ${example.loss.toFixed(2)}; ${text}`;
}

function boxesOf(examples) {
  const drawn = [];
  // Hard ones last, so that they are drawn on top.
  for (const [index, example] of [...examples.entries()].sort((a, b) => a[1].loss - b[1].loss)) {
    const look = { stroke: color(example.loss), title: describe(example), index };
    if (example.isObject) drawn.push({ ...look, box: example.box });
    if (example.detection && state.detections && (!example.isObject || example.loss > 0.7)) drawn.push({ ...look, box: example.detection.box, kind: "detection" });
  }
  return drawn;
}

function imageTile({ image, examples, most }) {
  const objects = examples.filter((example) => example.isObject).length;
  const counted = `${objects} object${objects === 1 ? "" : "s"}, ${examples.length - objects} false positive${examples.length - objects === 1 ? "" : "s"}`;
  return node("figure", { class: "tile" }, photo(image, boxesOf(examples)),
    node("figcaption", {}, `${image.file} `, node("span", {}, `hardest ${most.toFixed(2)} · ${counted}`)));
}

function openImage() {
  const { image, examples } = state.shown[state.current];
  one(".large").replaceChildren(photo(image, boxesOf(examples)));
  one(".side h2").textContent = `${image.file} (${state.current + 1} of ${state.shown.length})`;
  const rows = [...examples.entries()].sort((a, b) => b[1].loss - a[1].loss).map(([index, example]) => {
    const dot = node("span", { class: "dot" });
    dot.style.background = color(example.loss);
    const text = example.detection ? `${name(example.detection.label)} ${example.detection.score.toFixed(2)}` : "nothing";
    const row = node("tr", { tabindex: "0" },
      node("td", { class: "text" }, dot, (example.isObject ? "" : "false positive: ") + data.kinds[example.kind]),
      node("td", { class: "text" }, name(example.label)), node("td", {}, example.loss.toFixed(2)), node("td", { class: "text" }, text));
    const mark = (on) => () => {
      row.classList.toggle("here", on);
      all(`.large [data-index="${index}"]`).forEach((rect) => rect.classList.toggle("here", on));
    };
    for (const [event, on] of [["mouseenter", true], ["focus", true], ["mouseleave", false], ["blur", false]]) row.addEventListener(event, mark(on));
    return row;
  });
  one(".side tbody").replaceChildren(...rows);
  if (!dialog.open) dialog.showModal();
}

// ---- suspects ----

function shownSuspects() {
  const { problem, suspected } = fields;
  return suspects.filter((suspect) => (problem.value === "" || suspect.problem === Number(problem.value))
    && (suspected.value === "" || [suspect.annotated, suspect.proposed].some((one) => one && one.label === Number(suspected.value))));
}

function crop(image, boxes) {
  const [x1, y1] = [0, 1].map((axis) => Math.min(...boxes.map((box) => box[axis])));
  const [x2, y2] = [2, 3].map((axis) => Math.max(...boxes.map((box) => box[axis])));
  const width = Math.max(LEAST_CROP, (x2 - x1) * (1 + 2 * MARGIN)), height = Math.max(LEAST_CROP, (y2 - y1) * (1 + 2 * MARGIN));
  return [(x1 + x2 - width) / 2, (y1 + y2 - height) / 2, width, height];
}

function suspectTile(suspect) {
  const image = images[suspect.image], boxes = [];
  if (suspect.annotated) boxes.push({ box: suspect.annotated.box, kind: "annotated", title: "in the file" });
  if (suspect.proposed) boxes.push({ box: suspect.proposed.box, kind: "proposed", title: "the detector" });
  const tick = node("input", { type: "checkbox" });
  tick.checked = ticked.has(suspect.index);
  tick.addEventListener("change", () => setTick(suspect, tick.checked));
  const text = (labeled) => (labeled ? name(labeled.label) : "nothing");
  return node("figure", { class: "tile" }, photo(image, boxes, crop(image, boxes.map(({ box }) => box))),
    node("figcaption", {}, `${data.problems[suspect.problem]} `, node("span", {}, `suspicion ${suspect.suspicion.toFixed(2)} · ${image.file}`),
      node("div", { class: "marks" }, node("span", { class: "key-annotated" }, `file: ${text(suspect.annotated)}`),
        node("span", { class: "key-proposed" }, `detector: ${text(suspect.proposed)}`)),
      node("label", {}, tick, "is an error")));
}

function setTick(suspect, on) {
  if (on) ticked.add(suspect.index); else ticked.delete(suspect.index);
  saveTicks();
  showChosen();
}

function selectedSuspects() {
  const shown = shownSuspects(), chosen = shown.filter((suspect) => ticked.has(suspect.index));
  return chosen.length ? chosen : shown;
}

function showChosen() {
  const shown = shownSuspects(), count = shown.filter((suspect) => ticked.has(suspect.index)).length;
  fields.chosen.value = count ? `the ${count} ticked` : `all ${shown.length} (none is ticked)`;
}

const xywh = ([x1, y1, x2, y2]) => [x1, y1, x2 - x1, y2 - y1];
const category = (labeled) => ({ category_id: data.categories[labeled.label], bbox: xywh(labeled.box) });

function asCoco(chosen) {
  const used = [...new Set(chosen.map((suspect) => suspect.image))].map((index) => images[index]);
  return JSON.stringify({
    images: used.map(({ id, file, width, height }) => ({ id, file_name: file, width, height })),
    categories: data.classes.map((each, label) => ({ id: data.categories[label], name: each })),
    annotations: chosen.map((suspect, index) => {
      const shown = category(suspect.proposed || suspect.annotated);
      return {
        id: index + 1, image_id: images[suspect.image].id, ...shown, area: shown.bbox[2] * shown.bbox[3], iscrowd: 0,
        problem: data.problems[suspect.problem], suspicion: suspect.suspicion, annotated: suspect.annotated && category(suspect.annotated),
      };
    }),
  }, null, 1);
}

function asCsv(chosen) {
  const cell = (value) => (/[",\n]/.test(String(value)) ? `"${String(value).replaceAll('"', '""')}"` : String(value));
  const five = (labeled) => (labeled ? [name(labeled.label), ...labeled.box] : ["", "", "", "", ""]);
  const head = ["file", "image_id", "problem", "suspicion", "class", "x1", "y1", "x2", "y2",
    "proposed_class", "proposed_x1", "proposed_y1", "proposed_x2", "proposed_y2"];
  const rows = chosen.map((suspect) => [images[suspect.image].file, images[suspect.image].id, data.problems[suspect.problem],
    suspect.suspicion, ...five(suspect.annotated), ...five(suspect.proposed)]);
  return [head, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function save(kind) {
  const text = kind === "csv" ? asCsv(selectedSuspects()) : asCoco(selectedSuspects());
  const link = node("a", { download: kind === "csv" ? "suspects.csv" : "suspects_coco.json",
    href: URL.createObjectURL(new Blob([text], { type: kind === "csv" ? "text/csv" : "application/json" })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- the page ----

function numPages() { return Math.max(1, Math.ceil(state.shown.length / PER_PAGE)); }

function draw() {
  state.page = Math.min(state.page, numPages() - 1);
  const first = state.page * PER_PAGE, shown = state.shown.slice(first, first + PER_PAGE);
  state.current = Math.min(Math.max(state.current, first), Math.max(first, first + shown.length - 1));
  tiles.replaceChildren(...shown.map((each, index) => {
    const tile = state.view === "images" ? imageTile(each) : suspectTile(each);
    tile.classList.toggle("current", first + index === state.current);
    tile.addEventListener("click", (event) => {
      if (event.target.closest("label")) return;
      choose(first + index);
      open();
    });
    return tile;
  }));
  one(".pages span").textContent = `page ${state.page + 1} of ${numPages()}`;
  all(".pages button").forEach((button) => { button.disabled = !(state.page + Number(button.dataset.step) in [...Array(numPages())]); });
  const total = state.view === "images" ? images.length : suspects.length;
  const noun = state.view === "images" ? "images" : "suspected label errors";
  const examples = state.view === "images" ? `, ${state.shown.reduce((sum, each) => sum + each.examples.length, 0).toLocaleString("en")} objects and false positives` : "";
  one(".count").textContent = `${state.shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} ${noun}${examples}`;
}

function refresh() {
  kindsWanted = new Set(all('[name="kind"]').filter((box) => box.checked).map((box) => Number(box.value)));
  fields.lossValue.value = Number(fields.loss.value).toFixed(2);
  state.shown = state.view === "images" ? shownImages() : shownSuspects();
  state.page = 0;
  state.current = 0;
  showChosen();
  draw();
}

function show(view) {
  state.view = view;
  all("[data-view]").forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.view === view)));
  one(".for-images").hidden = view !== "images";
  one(".for-suspects").hidden = view !== "suspects";
  refresh();
}

function choose(position) {
  if (!(position >= 0 && position < state.shown.length)) return;
  state.current = position;
  const page = Math.floor(position / PER_PAGE);
  if (page !== state.page) { state.page = page; draw(); }
  all(".tile", tiles).forEach((tile, index) => tile.classList.toggle("current", page * PER_PAGE + index === position));
  const tile = tiles.children[position - page * PER_PAGE];
  if (tile && !dialog.open) tile.scrollIntoView({ block: "nearest" });
}

function open() {
  if (!state.shown.length) return;
  if (state.view === "images") { openImage(); return; }
  // The whole image of a suspect.
  const suspect = state.shown[state.current], image = images[suspect.image];
  const boxes = [...(suspect.annotated ? [{ box: suspect.annotated.box, kind: "annotated" }] : []), ...(suspect.proposed ? [{ box: suspect.proposed.box, kind: "proposed" }] : [])];
  one(".large").replaceChildren(photo(image, boxes));
  one(".side h2").textContent = `${image.file}: ${data.problems[suspect.problem]} (${state.current + 1} of ${state.shown.length})`;
  one(".side tbody").replaceChildren();
  if (!dialog.open) dialog.showModal();
}

function step(by) {
  choose(state.current + by);
  if (dialog.open) open();
}

function turn(by) {
  const page = state.page + by;
  if (page < 0 || page >= numPages()) return;
  state.page = page;
  state.current = page * PER_PAGE;
  draw();
  scrollTo({ top: 0 });
}

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=checkbox]), select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = {
    ArrowRight: () => step(1), j: () => step(1), ArrowLeft: () => step(-1), k: () => step(-1),
    PageDown: () => turn(1), PageUp: () => turn(-1),
    Enter: dialog.open || event.target.matches("button") ? undefined : open,
    d: () => { state.detections = !state.detections; draw(); if (dialog.open) open(); },
    x: () => {
      if (state.view !== "suspects" || !state.shown.length) return;
      setTick(state.shown[state.current], !ticked.has(state.shown[state.current].index));
      draw();
    },
  }[event.key];
  if (!act || (dialog.open && event.key.startsWith("Page"))) return;
  event.preventDefault(); // else Enter would press the focused button of the dialog
  act();
});
one(".filters").addEventListener("input", refresh);
one(".filters").addEventListener("submit", (event) => event.preventDefault());
all("[data-view]").forEach((button) => button.addEventListener("click", () => show(button.dataset.view)));
all("[data-export]").forEach((button) => button.addEventListener("click", () => save(button.dataset.export)));
all(".pages [data-step]").forEach((button) => button.addEventListener("click", () => turn(Number(button.dataset.step))));
all("dialog [data-step]").forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
one("[data-close]").addEventListener("click", () => dialog.close());

const totals = data.kinds.map((_, kind) => images.reduce((sum, image) => sum + image.examples.filter((example) => example.kind === kind).length, 0));
data.kinds.forEach((kind, index) => {
  const box = node("input", { type: "checkbox", name: "kind", value: index });
  box.checked = true;
  one(".kinds").append(node("label", {}, box, `${kind} (${totals[index].toLocaleString("en")})`));
});
for (const field of [fields.label, fields.suspected]) data.classes.forEach((each, label) => field.append(node("option", { value: label }, each)));
data.problems.forEach((problem, index) => {
  const count = suspects.filter((suspect) => suspect.problem === index).length;
  fields.problem.append(node("option", { value: index }, `${problem} (${count.toLocaleString("en")})`));
});
show("images");
