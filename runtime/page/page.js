"use strict";
// Everything that comes from the daemon is put in as text, never as markup.

const EVERY_MS = 3000;
let token = "";
let turn = 0;

const at = (id) => document.getElementById(id);

function age(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(1)} GB`;

function rows(id, lines, empty) {
  const body = at(id);
  body.replaceChildren();
  for (const { cells, bad } of lines.length ? lines : [{ cells: [empty] }]) {
    const row = body.insertRow();
    row.classList.toggle("bad", Boolean(bad));
    for (const cell of cells) {
      const place = row.insertCell();
      place.textContent = String(cell);
      place.classList.toggle("number", typeof cell === "number");
    }
  }
}

function sign(id, word, ok) {
  at(id).textContent = `${word}: ${ok === null ? "?" : ok ? "yes" : "no"}`;
  at(id).className = `sign ${ok === null ? "unknown" : ok ? "yes" : "no"}`;
}

function sentences(list) {
  at("reasons").replaceChildren(...list.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  at("why").hidden = list.length === 0;
}

function entry(one) {
  const when = age(Date.now() / 1000 - one.updated_at) + " ago";
  const what = one.path ?? (one.fault || one.state);
  const more = one.path === undefined ? "" : one.reason || (one.results ?? []).join(", ");
  return { cells: [what, more, when], bad: one.state === "failed" };
}

function show(found) {
  const v = found.vitals;
  sign("live", "live", v.live);
  sign("ready", "ready", v.ready);
  sentences(v.problems ?? v.reasons);
  at("pause").hidden = !v.paused;
  at("paused").textContent = v.paused ? v.paused_why ?? "no stack is begun for now" : "";
  const counts = Object.entries(found.counts ?? v.counts);
  rows("counts", counts.map(([state, n]) => ({ cells: [state, n], bad: state === "failed" && n > 0 })), "none yet");
  rows("roots", v.roots.map((root, number) => ({
    cells: [root.path ?? `folder ${number}`, root.ok ? "ok" : "not read", root.scan_age_s === null ? "not scanned yet" : `scanned ${age(root.scan_age_s)} ago`],
    bad: !root.ok,
  })), "none");
  const disk = v.disk;
  rows("machine", [
    { cells: ["disk", disk ? `${gigabytes(disk.free_bytes)} free, reserve ${gigabytes(disk.reserve_bytes)}` : "?"],
      bad: disk && !disk.ok },
    { cells: ["ledger", v.ledger_ok === null ? "?" : v.ledger_ok ? "written" : "cannot be written"], bad: v.ledger_ok === false },
    { cells: ["restoring process", `${v.worker.state}, replaced ${v.worker.restarts} times`], bad: v.worker.failures > 2 },
    { cells: ["golden tiles", v.canary ? `${v.canary.passed ? "reproduced" : "NOT reproduced"} ${age(v.canary.age_s)} ago` : "not yet"],
      bad: v.canary && !v.canary.passed },
    { cells: ["queue", v.queue] },
    { cells: ["up", age(v.up_s)] },
  ], "");
  for (const name of ["working", "failed", "done"]) rows(name, (found[name] ?? []).map(entry), "none");
  at("asked").textContent = found.ledger_problem ?? `at ${new Date().toLocaleTimeString()}`;
}

async function look() {
  const mine = ++turn;
  try {
    const headers = token ? { Authorization: `Bearer ${token}` } : {};
    const answer = await fetch("/status.json", { headers, cache: "no-store", credentials: "omit" });
    const found = await answer.json();
    if (mine !== turn) return;
    if (answer.status === 401) token = "";
    if (answer.ok) show(found);
    else at("asked").textContent = found.error ?? `the daemon answered ${answer.status}`;
  } catch (error) {
    if (mine !== turn) return;
    sign("live", "live", false);
    sign("ready", "ready", null);
    at("asked").textContent = "the daemon does not answer";
  }
}

at("names").addEventListener("submit", (event) => {
  event.preventDefault();
  token = at("token").value;
  at("token").value = "";
  look();
});
look();
setInterval(look, EVERY_MS);
