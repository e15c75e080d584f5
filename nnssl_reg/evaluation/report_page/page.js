// The table of pairs: sorting, choosing one, tooltips, keys.
const table = document.getElementById("pairs"), byId = (id) => document.getElementById(id);
const rows = () => [...table.tBodies[0].rows];
let chosen = -1;

function sortBy(column, direction) {
  const key = (row) => row.cells[column]?.dataset.sort ?? "";
  const compare = (a, b) => column === 0 ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b);
  const sorted = rows().sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === ""); // what is not known stands last, either way
    return direction * compare(x, y);
  });
  table.tBodies[0].append(...sorted);
  [...table.tHead.rows[0].cells].forEach((cell, i) => {
    cell.setAttribute("aria-sort", i !== column ? "none" : direction > 0 ? "ascending" : "descending");
  });
}

[...table.tHead.rows[0].cells].forEach((cell, i) => cell.querySelector("button").addEventListener("click", () => {
  sortBy(i, cell.getAttribute("aria-sort") === "ascending" ? -1 : 1);
}));

async function choose(index) {
  chosen = index;
  play(false);
  for (const row of rows()) row.classList.toggle("selected", Number(row.dataset.pair) === index);
  for (const part of document.querySelectorAll(".facts")) part.hidden = Number(part.dataset.facts) !== index;
  const facts = document.querySelector(`.facts[data-facts="${index}"]`), stored = byId(`pictures-${index}`);
  byId("name").textContent = facts.dataset.name;
  for (const side of ["fixed", "moving"]) byId(side).textContent = byId(side).title = facts.dataset[side];
  const chip = document.createElement("span"), words = { high: "high confidence", medium: "medium confidence", low: "low confidence" };
  chip.className = `chip ${facts.dataset.flag}`;
  chip.textContent = `${words[facts.dataset.flag] ?? facts.dataset.flag} ${facts.dataset.value}`;
  byId("verdict").replaceChildren(...(facts.dataset.flag ? [chip] : []), facts.dataset.verdict + (facts.dataset.verdict.endsWith(".") ? "" : "."));
  byId("stage").hidden = !stored;
  byId("nothing").hidden = !!stored;
  byId("nothing").textContent = facts.dataset.nothing;
  byId("viewer").dataset.ready = "";
  pair = null;
  if (stored) {
    const loaded = await load(JSON.parse(stored.textContent));
    if (chosen !== index) return; // another was chosen meanwhile
    show(loaded);
  }
  byId("viewer").dataset.ready = index;
}

function neighbour(by) {
  const order = rows().map((row) => Number(row.dataset.pair));
  const next = order[(order.indexOf(chosen) + by + order.length) % order.length];
  choose(next);
}

table.tBodies[0].addEventListener("click", (event) => {
  const row = event.target.closest("tr");
  if (row) choose(Number(row.dataset.pair));
});
byId("next").addEventListener("click", () => neighbour(1));
byId("previous").addEventListener("click", () => neighbour(-1));

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const focus = document.activeElement, area = byId("stage").getBoundingClientRect();
  const visible = pair && area.height > 0 && area.top < window.innerHeight && area.bottom > 0;
  const by = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1 }[event.key];
  if (by && visible) {
    const own = focus.closest?.("figure[data-plane]");
    step(planes[own ? own.dataset.plane : state.active], by);
  } else if (event.key === " " && visible && !focus.matches("button:focus-visible, summary")) {
    play(false);
    flicker();
  } else if (event.key === "n" || event.key === "p") {
    neighbour(event.key === "n" ? 1 : -1);
  } else return;
  event.preventDefault();
});
// a button that was clicked would take the space bar for itself
document.addEventListener("pointerup", (event) => event.target.closest("button")?.blur());

const tip = byId("tip");
function showTip(event) {
  const owner = event.target.closest?.("[data-tip]");
  tip.hidden = !owner;
  if (!owner) return;
  tip.textContent = owner.dataset.tip;
  const around = owner.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(10, around.left + around.width / 2 - own.width / 2), window.innerWidth - own.width - 10);
  const below = around.bottom + 8 + own.height < window.innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? around.bottom + 8 : around.top - 8 - own.height}px`;
}
document.addEventListener("pointerover", showTip);
document.addEventListener("focusin", (event) => { if (event.target.matches(":focus-visible")) showTip(event); });
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, true);

const first = rows().find((row) => byId(`pictures-${row.dataset.pair}`)) ?? rows()[0];
if (first) choose(Number(first.dataset.pair));
