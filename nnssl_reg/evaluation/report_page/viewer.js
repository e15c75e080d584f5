// The pictures of one pair: unpacks the sheets, draws the three planes, answers pointer, wheel and keys.
const state = { other: "warped", content: "images", mode: "slider", over: { fixed_label: true, other_label: true },
  split: 0.5, flipped: false, active: "axial" };
const planes = {};
let pair = null;

for (const figure of document.querySelectorAll("figure[data-plane]")) {
  const find = (selector) => figure.querySelector(selector);
  planes[figure.dataset.plane] = { name: figure.dataset.plane, figure, canvas: find("canvas"), range: find("input"),
    where: find(".where"), left: find(".left"), up: find(".up"), shown: find(".shown"), value: find(".value"), slice: 0 };
}

async function unpacked(plane) {
  const count = plane.positions_mm.length, tiles = {};
  await Promise.all(Object.entries(plane.sheets).map(async ([name, sheet]) => {
    const image = new Image();
    image.src = sheet.data;
    await image.decode();
    tiles[name] = [];
    for (let i = 0; i < count; i++) {
      const tile = document.createElement("canvas");
      tile.width = sheet.width;
      tile.height = sheet.height;
      const context = tile.getContext("2d", { willReadFrequently: /label|field|apart/.test(name) });
      context.drawImage(image, -(i % 4) * sheet.width, -Math.floor(i / 4) * sheet.height);
      tiles[name].push(tile);
    }
  }));
  return { ...plane, count, tiles, made: new Map() };
}

async function load(pictures) {
  const unpackedPlanes = await Promise.all(pictures.planes.map(unpacked));
  return { ...pictures, planes: Object.fromEntries(unpackedPlanes.map((plane) => [plane.name, plane])) };
}

function show(loaded) {
  pair = loaded;
  for (const plane of Object.values(planes)) {
    const data = pair.planes[plane.name];
    plane.range.max = data.count - 1;
    plane.slice = Math.floor(data.count / 2);
    plane.left.textContent = data.left;
    plane.up.textContent = data.top;
    plane.value.textContent = "";
  }
  const has = (name) => name in pair.planes.axial.tiles;
  const needs = { features: "fixed_features", fixed_label: "fixed_label", other_label: "warped_label", apart: "apart" };
  for (const button of document.querySelectorAll("#content button, #over button")) {
    button.disabled = button.dataset.value in needs && !has(needs[button.dataset.value]);
  }
  if (state.content === "features" && !has("fixed_features")) state.content = "images";
  draw();
}

// once computed for a slice, kept until the pair changes
function made(data, key, make) {
  if (!data.made.has(key)) data.made.set(key, make());
  return data.made.get(key);
}

function pixels(tile) {
  return tile.getContext("2d").getImageData(0, 0, tile.width, tile.height).data;
}

// The lines where `values` (width x height, at pixel centres) cross `level`, by marching squares, in units of the whole: 0..1.
function isolines(values, width, height, level, path) {
  const at = (x, y) => values[y * width + x] - level;
  for (let y = 0; y + 1 < height; y++) {
    for (let x = 0; x + 1 < width; x++) {
      const a = at(x, y), b = at(x + 1, y), c = at(x + 1, y + 1), d = at(x, y + 1);
      const kind = (a > 0) + 2 * (b > 0) + 4 * (c > 0) + 8 * (d > 0);
      if (kind === 0 || kind === 15) continue;
      const top = [x + a / (a - b), y], right = [x + 1, y + b / (b - c)], bottom = [x + d / (d - c), y + 1], left = [x, y + a / (a - d)];
      const pairs = { 1: [left, top], 14: [left, top], 2: [top, right], 13: [top, right], 4: [right, bottom], 11: [right, bottom],
        8: [bottom, left], 7: [bottom, left], 3: [left, right], 12: [left, right], 6: [top, bottom], 9: [top, bottom],
        5: [left, top, right, bottom], 10: [top, right, bottom, left] }[kind];
      for (let i = 0; i < pairs.length; i += 2) {
        path.moveTo((pairs[i][0] + 0.5) / width, (pairs[i][1] + 0.5) / height);
        path.lineTo((pairs[i + 1][0] + 0.5) / width, (pairs[i + 1][1] + 0.5) / height);
      }
    }
  }
}

// 1-2-1 weights along both axes
function smoothed(values, width, height) {
  const along = (source, step, size, position) => source.map((value, i) => {
    const p = position(i);
    return (2 * value + source[p > 0 ? i - step : i] + source[p < size - 1 ? i + step : i]) / 4;
  });
  const rows = along(values, 1, width, (i) => i % width);
  return along(rows, width, height, (i) => Math.floor(i / width));
}

// one Path2D per label, in units of the picture
function outlines(data, name, slice) {
  return made(data, `${name} ${slice}`, () => {
    const tile = data.tiles[name][slice], rgba = pixels(tile), width = tile.width + 2, height = tile.height + 2;
    const found = new Set();
    for (let i = 0; i < rgba.length; i += 4) if (rgba[i]) found.add(rgba[i]);
    return [...found].map((place) => {
      const mask = new Float32Array(width * height); // with a border, so that outlines close at the picture's edge
      for (let y = 0; y < tile.height; y++) {
        for (let x = 0; x < tile.width; x++) mask[(y + 1) * width + x + 1] = rgba[4 * (y * tile.width + x)] === place;
      }
      const path = new Path2D(), whole = new Path2D();
      isolines(smoothed(mask, width, height), width, height, 0.45, path);
      whole.addPath(path, new DOMMatrix([width / tile.width, 0, 0, height / tile.height, -1 / tile.width, -1 / tile.height]));
      return { path: whole, colour: COLOURS[(pair.label_ids[place - 1] - 1 + COLOURS.length * 1000) % COLOURS.length] };
    });
  });
}

function gridLines(data, slice) {
  return made(data, `grid ${slice}`, () => {
    const tile = data.tiles.field[slice], rgba = pixels(tile), { width, height } = tile, path = new Path2D();
    const step = Math.max(data.width_mm, data.height_mm) / 24;
    for (const [channel, size, place] of [[0, data.width_mm, (i) => (i % width + 0.5) / width], [1, -data.height_mm, (i) => (Math.floor(i / width) + 0.5) / height]]) {
      let origin = Float32Array.from({ length: width * height }, (_, i) => place(i) * size + (rgba[4 * i + channel] - 128) / 127 * pair.displacement_mm);
      origin = smoothed(smoothed(origin, width, height), width, height);
      const low = origin.reduce((a, b) => Math.min(a, b)), high = origin.reduce((a, b) => Math.max(a, b));
      for (let level = Math.ceil(low / step) * step; level < high; level += step) isolines(origin, width, height, level, path);
    }
    return path;
  });
}

const MAPS = {
  jacobian: { sheet: "field", channel: 2, colour: (v) => v === 0 ? [0, 0, 0] : diverging((v - 128) / 127), ends: () => [(2 ** -pair.jacobian_log2).toFixed(2), (2 ** pair.jacobian_log2).toFixed(2)],
    note: "change of volume J: 1 keeps it, black folds", value: (v) => v === 0 ? "J ≤ 0" : `J ${(2 ** ((v - 128) / 127 * pair.jacobian_log2)).toFixed(2)}` },
  apart: { sheet: "apart", channel: 0, colour: (v) => heat(v / 255), ends: () => ["0", `≥ ${pair.apart_mm.toFixed(1)}`],
    note: "mm between the two directions", value: (v) => `${(v / 255 * pair.apart_mm).toFixed(1)} mm apart` },
};

function mixed(stops, t) {
  const x = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(x), stops.length - 2);
  return stops[i].map((v, k) => v + (x - i) * (stops[i + 1][k] - v));
}
const diverging = (t) => mixed([[178, 24, 43], [239, 138, 98], [247, 247, 247], [103, 169, 207], [33, 102, 172]], (t + 1) / 2);
const heat = (t) => mixed([[13, 8, 60], [120, 28, 109], [207, 68, 70], [251, 155, 6], [252, 255, 164]], t);

function coloured(data, name, slice) {
  return made(data, `${name} ${slice}`, () => {
    const map = MAPS[name], tile = data.tiles[map.sheet][slice], rgba = pixels(tile), out = document.createElement("canvas");
    [out.width, out.height] = [tile.width, tile.height];
    const target = new ImageData(tile.width, tile.height);
    for (let i = 0; i < rgba.length; i += 4) target.data.set([...map.colour(rgba[i + map.channel]), 255], i);
    out.getContext("2d").putImageData(target, 0, 0);
    return out;
  });
}

// where a picture lies in its square frame, in CSS pixels; all planes at one scale
function box(data, side) {
  const longest = Math.max(...Object.values(pair.planes).flatMap((p) => [p.width_mm, p.height_mm]));
  const width = side * data.width_mm / longest, height = side * data.height_mm / longest;
  return { x: (side - width) / 2, y: (side - height) / 2, width, height };
}

function drawPlane(plane) {
  const data = pair.planes[plane.name], side = plane.figure.querySelector(".frame").clientWidth, scale = window.devicePixelRatio || 1;
  const size = Math.round(side * scale);
  if (plane.canvas.width !== size) [plane.canvas.width, plane.canvas.height] = [size, size];
  const context = plane.canvas.getContext("2d"), slice = plane.slice, b = box(data, side);
  const suffix = state.content === "features" ? "_features" : "";
  const pictures = [data.tiles[`fixed${suffix}`][slice], data.tiles[`${state.other}${suffix}`][slice]];
  const labels = [state.over.fixed_label && data.tiles.fixed_label, state.over.other_label && data.tiles[`${state.other}_label`]];
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, side, side);
  context.imageSmoothingQuality = "high";
  const put = (picture) => context.drawImage(picture, b.x, b.y, b.width, b.height);
  put(pictures[state.mode === "flicker" && state.flipped ? 1 : 0]);
  if (state.mode !== "flicker") {
    context.save();
    context.beginPath();
    if (state.mode === "slider") context.rect(b.x + state.split * b.width, b.y, b.width, b.height);
    else checkers(context, b);
    context.clip();
    put(pictures[1]);
    context.restore();
  }
  for (const name of ["jacobian", "apart"]) {
    if (!state.over[name] || !data.tiles[MAPS[name].sheet]) continue;
    context.globalAlpha = 0.6;
    put(coloured(data, name, slice));
    context.globalAlpha = 1;
  }
  context.save();
  context.beginPath();
  context.rect(b.x, b.y, b.width, b.height);
  context.clip();
  if (state.over.grid) stroke(context, b, gridLines(data, slice), "#ffd23f", 1, []);
  if (labels[0]) for (const line of outlines(data, "fixed_label", slice)) stroke(context, b, line.path, line.colour, 1.5, []);
  if (labels[1]) for (const line of outlines(data, `${state.other}_label`, slice)) stroke(context, b, line.path, line.colour, 1.5, [3, 3]);
  context.restore();
  if (state.mode === "slider") divider(context, b);
  plane.range.value = slice;
  plane.where.textContent = `${plane.name} ${slice + 1} / ${data.count} · ${data.letter} ${data.positions_mm[slice].toFixed(0)} mm`;
  plane.shown.textContent = state.mode === "flicker" ? (state.flipped ? state.other : "fixed") : state.mode === "slider" ? `fixed | ${state.other}` : "";
  plane.figure.classList.toggle("active", plane.name === state.active);
}

function checkers(context, b) {
  const edge = Math.max(b.width, b.height) / 8;
  for (let j = 0; j * edge < b.height; j++) {
    for (let i = (j + 1) % 2; i * edge < b.width; i += 2) {
      context.rect(b.x + i * edge, b.y + j * edge, Math.min(edge, b.width - i * edge), Math.min(edge, b.height - j * edge));
    }
  }
}

function stroke(context, b, path, colour, width, dash) {
  const placed = new Path2D();
  placed.addPath(path, new DOMMatrix([b.width, 0, 0, b.height, b.x, b.y]));
  context.lineWidth = width;
  context.strokeStyle = colour;
  context.setLineDash(dash);
  context.stroke(placed);
}

function divider(context, b) {
  const x = b.x + state.split * b.width;
  context.setLineDash([]);
  context.fillStyle = "rgb(255 255 255 / 0.9)";
  context.fillRect(x - 0.75, b.y, 1.5, b.height);
  context.beginPath();
  context.arc(x, b.y + b.height / 2, 6, 0, 2 * Math.PI);
  context.fill();
}

function draw() {
  if (!pair) return;
  for (const [group, value] of [["other", state.other], ["content", state.content], ["mode", state.mode]]) {
    for (const button of document.querySelectorAll(`#${group} button`)) button.setAttribute("aria-pressed", button.dataset.value === value);
  }
  for (const button of document.querySelectorAll("#over button")) button.setAttribute("aria-pressed", !button.disabled && !!state.over[button.dataset.value]);
  Object.values(planes).forEach(drawPlane);
  drawBar();
}

function drawBar() {
  const bar = document.getElementById("bar"), name = ["jacobian", "apart"].find((key) => state.over[key] && pair.planes.axial.tiles[MAPS[key].sheet]);
  bar.classList.toggle("empty", !name);
  if (!name) return;
  const [low, high, note] = bar.querySelectorAll("span"), context = bar.querySelector("canvas").getContext("2d");
  [low.textContent, high.textContent] = MAPS[name].ends();
  note.textContent = MAPS[name].note;
  for (let i = 0; i < 256; i++) {
    context.fillStyle = `rgb(${MAPS[name].colour(Math.max(i, 1)).map(Math.round).join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  }
}

function step(plane, by) {
  const next = Math.min(Math.max(plane.slice + by, 0), pair.planes[plane.name].count - 1), moved = next !== plane.slice;
  plane.slice = next;
  state.active = plane.name;
  draw();
  return moved;
}

// the place of a pointer in a picture, 0..1 along both axes
function place(plane, event) {
  const frame = plane.canvas.getBoundingClientRect(), b = box(pair.planes[plane.name], frame.width);
  return [(event.clientX - frame.left - b.x) / b.width, (event.clientY - frame.top - b.y) / b.height];
}

function tell(plane, event) {
  const data = pair.planes[plane.name], [x, y] = place(plane, event), name = ["jacobian", "apart"].find((key) => state.over[key]);
  const tile = name && data.tiles[MAPS[name].sheet] ? data.tiles[MAPS[name].sheet][plane.slice] : data.tiles.field[plane.slice];
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return void (plane.value.textContent = "");
  const i = 4 * (Math.floor(y * tile.height) * tile.width + Math.floor(x * tile.width)), rgba = made(data, `pixels ${name} ${plane.slice}`, () => pixels(tile));
  const across = [rgba[i], rgba[i + 1]].map((v) => (v - 128) / 127 * pair.displacement_mm);
  plane.value.textContent = name ? MAPS[name].value(rgba[i + MAPS[name].channel]) : `moves ${Math.hypot(...across).toFixed(0)} mm in plane`;
}

for (const plane of Object.values(planes)) {
  plane.range.addEventListener("input", () => step(plane, plane.range.valueAsNumber - plane.slice));
  plane.canvas.addEventListener("wheel", (event) => {
    if (pair && !event.ctrlKey && step(plane, Math.sign(event.deltaY))) event.preventDefault(); // at the last slice the page goes on
  }, { passive: false });
  const drag = (event) => {
    if (!pair) return;
    if (event.buttons === 1 && state.mode === "slider") {
      state.split = Math.min(Math.max(place(plane, event)[0], 0), 1);
      draw();
    }
    tell(plane, event);
  };
  plane.canvas.addEventListener("pointerdown", (event) => {
    state.active = plane.name;
    if (event.pointerType === "mouse") plane.canvas.setPointerCapture(event.pointerId);
    drag(event);
    draw();
  });
  plane.canvas.addEventListener("pointermove", drag);
  plane.canvas.addEventListener("pointerenter", () => { if (pair && state.active !== plane.name) { state.active = plane.name; draw(); } });
  plane.canvas.addEventListener("pointerleave", () => { plane.value.textContent = ""; });
  plane.canvas.addEventListener("focus", () => { if (pair) { state.active = plane.name; draw(); } });
}

function flicker() {
  state.flipped = state.mode === "flicker" ? !state.flipped : true;
  state.mode = "flicker";
  draw();
}

let timer = 0;
function play(on) {
  clearInterval(timer);
  timer = on ? setInterval(flicker, 650) : 0;
  document.getElementById("play").setAttribute("aria-pressed", on);
  if (on) flicker();
}

for (const group of ["other", "content", "mode"]) {
  document.getElementById(group).addEventListener("click", (event) => {
    if (!event.target.dataset.value) return;
    state[group] = event.target.dataset.value;
    if (group === "mode") play(false);
    draw();
  });
}
document.getElementById("over").addEventListener("click", (event) => {
  const name = event.target.dataset.value;
  if (!name) return;
  state.over[name] = !state.over[name];
  if (name === "jacobian") state.over.apart = false; // one colour bar at a time
  if (name === "apart") state.over.jacobian = false;
  draw();
});
document.getElementById("play").addEventListener("click", () => play(!timer));
new ResizeObserver(draw).observe(document.getElementById("viewer"));
