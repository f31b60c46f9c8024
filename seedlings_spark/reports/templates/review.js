"use strict";
document.body.classList.remove("no-script");
const data = JSON.parse(document.getElementById("data").textContent);
const cards = [...document.querySelectorAll(".review > li")];
const bar = document.querySelector(".bar");
const { other, remove, save } = bar.elements;
const keys = bar.querySelector(".keys"), said = bar.querySelector("output");
// Picture -> species, as places.
const labels = new Map();
let current = 0, isSaved = true;

// Labels outlive a closed page, where the browser keeps anything for files.
const place = `seedlings review ${data.run}`;
function kept(value) {
  try {
    if (value !== undefined) localStorage.setItem(place, value);
    return localStorage.getItem(place);
  } catch {
    return null;
  }
}

function show() {
  cards.forEach((card, number) => {
    card.setAttribute("aria-current", String(number === current));
    card.querySelector(".label").textContent = labels.has(number) ? `is ${data.names[labels.get(number)]}` : "";
  });
  const chosen = labels.get(current);
  keys.replaceChildren(...data.pictures[current].choices.map((species, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${number + 1} ${data.names[species]}`;
    button.setAttribute("aria-pressed", String(species === chosen));
    button.addEventListener("click", () => label(species));
    return button;
  }));
  other.value = chosen === undefined || data.pictures[current].choices.includes(chosen) ? "" : chosen;
  said.textContent = `${labels.size} of ${cards.length} labelled${isSaved ? "" : ", not saved"}`;
}

function go(number) {
  current = Math.max(0, Math.min(cards.length - 1, number));
  show();
  cards[current].scrollIntoView({ block: "center" });
}

function changed() {
  isSaved = false;
  kept(JSON.stringify([...labels].map(([number, species]) => [data.pictures[number].content_hash, data.species[species]])));
}

function label(species) {
  labels.set(current, species);
  changed();
  go(current + 1);
}

function unlabel() {
  labels.delete(current);
  changed();
  show();
}

const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

function table() {
  const rows = [...labels].sort(([a], [b]) => a - b).map(([number, species]) =>
    [data.pictures[number].path, data.pictures[number].content_hash, data.species[species]].map(quoted).join(","));
  return `${["path,content_hash,species", ...rows].join("\n")}\n`;
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = "labels.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  isSaved = true;
  show();
}

data.names.forEach((name, species) => other.append(new Option(name, species)));
const before = new Map(JSON.parse(kept() || "[]"));
data.pictures.forEach(({ content_hash: hash }, number) => {
  const species = data.species.indexOf(before.get(hash));
  if (species >= 0) labels.set(number, species);
});
cards.forEach((card, number) => card.addEventListener("click", () => go(number)));
other.addEventListener("change", () => {
  if (other.value !== "") label(Number(other.value));
  other.blur();
});
remove.addEventListener("click", unlabel);
save.addEventListener("click", download);
bar.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLSelectElement) return;
  const { choices } = data.pictures[current];
  const act = { ArrowLeft: () => go(current - 1), ArrowRight: () => go(current + 1), Backspace: unlabel, s: download, S: download }[event.key];
  if (!act && !(event.key >= "1" && event.key <= String(choices.length) && event.key.length === 1)) return;
  event.preventDefault();
  if (act) act();
  else label(choices[Number(event.key) - 1]);
});
addEventListener("beforeunload", (event) => {
  if (!isSaved) event.preventDefault();
});
show();
