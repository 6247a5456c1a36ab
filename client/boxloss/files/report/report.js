"use strict";
(() => {
  const {findings, key} = JSON.parse(document.getElementById("data").textContent);
  const grid = document.getElementById("cards");
  if (!grid) return;
  const find = (id) => document.getElementById(id);
  const cards = [...grid.children];
  const toolbar = find("toolbar");
  const place = "boxloss audit " + key;

  // Browsers may forbid a local file to store anything: then decisions last as long as the page.
  let decisions = {};
  try { decisions = JSON.parse(localStorage.getItem(place)) || {}; } catch {}
  const keep = () => { try { localStorage.setItem(place, JSON.stringify(decisions)); } catch {} };

  const visible = () => [...grid.children].filter((card) => !card.hidden);
  const accepted = () => findings.filter((_, number) => decisions[number] === "accepted");

  function mark(card) {
    const decision = decisions[card.dataset.number];
    for (const [word, state] of [["accept", "accepted"], ["reject", "rejected"]]) {
      card.classList.toggle(state, decision === state);
      card.querySelector("." + word).setAttribute("aria-pressed", decision === state);
    }
  }

  function tell() {
    const count = accepted().length;
    find("status").textContent = `${visible().length} of ${cards.length} shown, ${count} accepted`;
    find("download").disabled = !count;
    find("none").hidden = visible().length > 0;
  }

  function decide(chosen, decision) {
    for (const card of chosen) {
      if (decision) decisions[card.dataset.number] = decision;
      else delete decisions[card.dataset.number];
      mark(card);
    }
    keep();
    tell();
  }

  const toggle = (card, decision) => decide([card], decisions[card.dataset.number] === decision ? null : decision);

  function filter() {
    const kinds = new Set([...toolbar.querySelectorAll("[name=kind]:checked")].map((box) => box.value));
    const name = find("class").value, least = Number(find("score").value), wanted = find("decision").value;
    find("score-shown").textContent = least.toFixed(2);
    for (const card of cards) {
      const {kind, score, number} = card.dataset;
      card.hidden = !(kinds.has(kind) && (!name || card.dataset.class === name) && Number(score) >= least
        && (!wanted || (decisions[number] || "open") === wanted));
    }
    tell();
  }

  const orders = {
    score: () => 0, // The order in which the cards come.
    kind: (a, b) => compare(a.kind, b.kind),
    class: (a, b) => compare(a.class, b.class),
    image: (a, b) => compare(String(a.file_name ?? a.image_id), String(b.file_name ?? b.image_id)),
  };
  const compare = (a, b) => (a < b ? -1 : Number(a > b));

  function sort() {
    const order = orders[find("order").value];
    const number = (card) => Number(card.dataset.number);
    grid.append(...cards.sort(
      (a, b) => order(findings[number(a)], findings[number(b)]) || number(a) - number(b)));
  }

  function download() {
    const text = JSON.stringify({findings: accepted()}, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "accepted.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  grid.addEventListener("click", ({target}) => {
    if (target.matches(".accept")) toggle(target.closest(".card"), "accepted");
    if (target.matches(".reject")) toggle(target.closest(".card"), "rejected");
  });
  toolbar.addEventListener("input", filter);
  toolbar.addEventListener("submit", (event) => event.preventDefault());
  find("order").addEventListener("input", sort);
  find("accept-shown").addEventListener("click", () => decide(visible(), "accepted"));
  find("reset-shown").addEventListener("click", () => decide(visible(), null));
  find("download").addEventListener("click", download);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
    const card = event.target.closest(".card");
    if (event.key === "j" || event.key === "k") {
      const shown = visible();
      const next = card ? shown.indexOf(card) + (event.key === "j" ? 1 : -1) : 0;
      shown[next]?.focus();
    } else if (card && event.key === "a") toggle(card, "accepted");
    else if (card && event.key === "r") toggle(card, "rejected");
  });

  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    for (const each of closed) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of closed) each.open = false; });

  cards.forEach(mark);
  tell();
})();
