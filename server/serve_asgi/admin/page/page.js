// The page: takes the server-sent events, keeps ten minutes of samples, and shows them.

import {showHub} from "./hub.js";
import {Chart, clock, colourOf, dark, generationsOf, hueOf, styleOf} from "./charts.js";

const KEPT = 600;      // samples
const SHOWN = 60;      // things that happened
const SHORTEST = 60;   // seconds that the charts show at least
const SILENT = 3.5;    // seconds without a sample that are told
const AGAIN = 15;      // seconds without one after which the page asks anew
const $ = id => document.getElementById(id);

const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const fine = new Intl.NumberFormat("en", {maximumFractionDigits: 1});
const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
const count = value => value >= 100 || value === 0 ? whole.format(value) : fine.format(value);
const brief = value => value >= 10000 ? short.format(value) : count(value);
const three = value => value >= 99.5 ? whole.format(value) : value >= 9.95 ? fine.format(value) : String(+value.toPrecision(2));
const time = ms => ms === null ? "–" : ms >= 1000 ? `${three(ms / 1000)} s` : `${three(ms)} ms`;
const percent = share => `${whole.format(share * 100)} %`;
const bytes = value => {
  const step = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${step ? three(value / 1000 ** step) : whole.format(value)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
};
const several = (number, thing) => `${whole.format(number)} ${thing}${number === 1 ? "" : "s"}`;
const lasting = seconds => {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [length, name] = parts[first], rest = parts[first + 1];
  const big = Math.floor(seconds / length), small = rest ? Math.floor(seconds % length / rest[0]) : 0;
  return small && big < 10 ? `${big} ${name} ${small} ${rest[1]}` : `${big} ${name}`;
};
const sum = values => values.reduce((a, b) => a + b, 0);
const own = name => () => styleOf(name);

const data = {samples: [], records: [], reloads: [], deploys: [], now: null, about: null};
let range = 300, hovered = null, painting = false, generation = null, begun = 0;

// The charts

const SMALL = [
  {name: "Latency", kind: "line", log: true, format: time, series: [
    {name: "50 %", colour: own("--one"), value: s => s.d[0], format: time},
    {name: "90 %", colour: own("--two"), value: s => s.d[1], format: time},
    {name: "99 %", colour: own("--three"), value: s => s.d[2], format: time}]},
  {name: "Streams that ended", kind: "line", log: true, format: time, series: [
    {name: "first byte, 50 %", colour: own("--one"), value: s => s.z[0], format: time},
    {name: "first byte, 99 %", colour: own("--two"), value: s => s.z[1], format: time},
    {name: "duration, 50 %", colour: own("--three"), value: s => s.z[2], format: time}]},
  {name: "Connections", kind: "stack", format: brief, least: 4, series: [
    {name: "active", colour: own("--one"), value: s => s.c[1], format: count},
    {name: "idle", colour: own("--two"), value: s => s.c[0], format: count},
    {name: "WebSockets", colour: own("--three"), value: s => s.c[2], format: count}]},
  {name: "Answers per second", kind: "stack", format: brief, least: 1, series: [
    {name: "5xx", colour: own("--bad"), value: s => s.s[4], format: count},
    {name: "4xx", colour: own("--warn"), value: s => s.s[3], format: count},
    {name: "1xx, 3xx", colour: own("--three"), value: s => s.s[0] + s.s[2], format: count},
    {name: "2xx", colour: own("--two"), value: s => s.s[1], format: count}]},
  {name: "Processor", kind: "line", format: percent, least: 0.1, series: [
    {name: "all workers", colour: own("--one"), value: s => s.p, format: percent}]},
  {name: "Memory", kind: "line", format: bytes, least: 1e6, series: [
    {name: "all workers", colour: own("--one"), value: s => s.m, format: bytes}]},
  {name: "Event loop late", kind: "line", format: time, least: 5, series: [
    {name: "worst worker", colour: own("--one"), value: s => s.l, format: time}]},
  {name: "Bytes per second", kind: "line", format: bytes, least: 1000, series: [
    {name: "in", colour: own("--one"), value: s => s.i, format: bytes},
    {name: "out", colour: own("--three"), value: s => s.o, format: bytes}]},
  {name: "Waiting to be accepted", kind: "line", format: brief, least: 4, series: [
    {name: "clients", colour: own("--one"), value: s => s.q, format: value => value === null ? "not known here" : count(value)}]},
  {name: "Handed over", kind: "bars", format: brief, least: 4, series: [
    {name: "connections", colour: s => colourOf(s?.g ?? 1), value: s => s.h, format: count}]},
];

const main = new Chart($("main"), {kind: "generations", format: brief, least: 4});
const charts = [main, ...SMALL.map(each => {
  const card = $("charts").appendChild(element("section", "card"));
  const head = card.appendChild(element("div", "head"));
  head.append(element("h2", "", each.name));
  const legend = head.appendChild(element("div", "legend"));
  const canvas = card.appendChild(element("canvas"));
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", each.name);
  return Object.assign(new Chart(canvas, each), {legend});
})];

function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}

function paint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => { painting = false; if (data.samples.length) paintNow(); });
}

function paintNow() {
  const to = data.samples.at(-1).t;
  const from = Math.min(to - SHORTEST, Math.max(to - range, data.samples[0].t - 1));
  const begin = data.samples.findIndex(sample => sample.t >= from);
  const shown = data.samples.slice(Math.max(0, begin - 1)), window = {from, to};
  const at = hovered === null ? null : nearest(shown, window, hovered);
  for (const chart of charts) {
    chart.draw(shown, window, data.reloads, at);
    if (chart.legend) writeLegend(chart, at ?? shown.at(-1));
  }
  writeMainLegend(at ?? shown.at(-1), at !== null);
  placeBands(shown, window);
  placeMarks(window);
}

function nearest(samples, window, share) {
  const at = window.from + share * (window.to - window.from);
  return samples.reduce((best, each) => Math.abs(each.t - at) < Math.abs(best.t - at) ? each : best);
}

function writeLegend(chart, sample) {
  chart.legend.replaceChildren(...chart.series.map(each => {
    const item = element("span"), dot = item.appendChild(element("i"));
    dot.style.setProperty("--own", each.colour(sample));
    item.append(each.name + " ", element("b", "", each.format(each.value(sample))));
    return item;
  }));
}

function writeMainLegend(sample, past) {
  const items = Object.entries(sample.r).map(([number, rate]) => {
    const item = element("span"), dot = item.appendChild(element("i"));
    dot.style.setProperty("--own", colourOf(+number));
    item.append(`generation ${number} `, element("b", "", count(rate)));
    return item;
  });
  if (past) items.unshift(element("span", "", clock(sample.t)));
  $("legend-main").replaceChildren(...items);
}

const place = (window, at) => `${Math.max(0, Math.min(1, (at - window.from) / (window.to - window.from))) * 100}%`;

function placeBands(samples, window) {
  $("bands").replaceChildren(...generationsOf(samples).filter(each => each.generation && each.to > window.from).map(each => {
    const band = element("div", "band"), from = Math.max(each.from, window.from);
    const width = (each.to - from) / (window.to - window.from) * $("bands").clientWidth;
    band.dataset.generation = each.generation;
    band.textContent = width > 110 ? `generation ${each.generation}` : width > 16 ? each.generation : "";
    band.style.setProperty("--own", colourOf(each.generation));
    band.style.left = place(window, from);
    band.style.width = `${Math.max(1, width - 2)}px`;
    return band;
  }));
}

const TRIALS = {
  canary_started: {kind: "trial", sign: "%", head: "A trial begins"},
  canary_withdrawn: {kind: "back", sign: "↩", head: "The canary is taken back"},
};

// What is marked above the main chart: reloads, trials and their ends, and workers that died.
function marked() {
  const reloads = data.reloads.map(each => each.outcome === "refused"
    ? {at: each.at, kind: "refused", sign: "×", head: "Reload refused", text: each.reason ?? each.text ?? ""}
    : {at: each.at, kind: "done", sign: each.outcome === "rolled_back" ? "↺" : "↻", generation: each.generation,
       head: `Generation ${each.generation} serves${each.outcome === "rolled_back" ? " again: rolled back" : ""}`,
       text: each.seconds === undefined ? "" : `That took ${three(each.seconds)} s.`});
  const died = data.records.filter(each => each.event === "worker_died").map(
    each => ({at: each.at, kind: "died", sign: "!", head: "A worker died", text: each.text}));
  const trials = data.records.filter(each => each.event in TRIALS).map(each => ({at: each.at, text: each.text, generation: each.generation, ...TRIALS[each.event]}));
  return [...reloads, ...died, ...trials];
}

function placeMarks(window) {
  const wanted = marked().filter(each => each.at >= window.from && each.at <= window.to + 1.5);
  const holder = $("marks"), old = new Map([...holder.children].map(each => [each.dataset.key, each]));
  for (const each of wanted) {
    const key = `${each.kind} ${each.at}`, mark = old.get(key) ?? element("button", `mark ${each.kind}`, each.sign);
    old.delete(key);
    mark.dataset.key = key;
    mark.dataset.outcome = each.kind;
    if (each.generation) mark.dataset.generation = each.generation;
    if (each.generation && each.kind !== "back") mark.style.setProperty("--own", colourOf(each.generation));
    mark.style.left = place(window, each.at);
    mark.setAttribute("aria-label", `${clock(each.at)} ${each.head}. ${each.text}`);
    mark.onmouseenter = mark.onfocus = () => tell(mark, `${clock(each.at)}  ${each.head}`, each.text);
    mark.onmouseleave = mark.onblur = () => { $("tip").hidden = true; };
    if (!mark.parentNode) holder.append(mark);
  }
  for (const gone of old.values()) gone.remove();
}

function tell(mark, head, text) {
  const tip = $("tip"), box = mark.getBoundingClientRect();
  tip.replaceChildren(element("b", "", head), text);
  tip.hidden = false;
  const left = Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, document.documentElement.clientWidth - tip.offsetWidth - 12);
  tip.style.left = `${Math.max(12, left)}px`;
  tip.style.top = `${box.top + scrollY - tip.offsetHeight - 8}px`;
}

// The present

function show() {
  const {now} = data, last = data.samples.at(-1), recent = data.samples.slice(-5);
  document.documentElement.style.setProperty("--hue", hueOf(now.generation));
  if (generation !== null && generation !== now.generation) {
    $("badge").classList.remove("turn");
    void $("badge").offsetWidth;
    $("badge").classList.add("turn");
  }
  generation = now.generation;
  $("generation").textContent = now.generation || "–";
  const serving = now.workers.filter(each => each.generation === now.generation && ["serving", "recycling"].includes(each.state)).length;
  $("headline").textContent = now.generation ? `${several(serving, "worker")} ${serving === 1 ? "serves" : "serve"}` : "Starting";
  $("subline").textContent = subline();
  $("notes").replaceChildren(...notes());
  showCanary(now.canary);
  const rates = recent.map(sample => sum(Object.values(sample.r)));
  $("rate").textContent = rates.length ? brief(sum(rates) / rates.length) : "–";
  $("requests").textContent = whole.format(now.totals.requests);
  const timed = data.samples.slice(-10).filter(sample => sample.d[0] !== null), typical = which => {
    const values = timed.map(sample => sample.d[which]).sort((a, b) => a - b);
    return values.length ? time(values[Math.floor(values.length / 2)]) : "–";
  };
  $("median").textContent = typical(0);
  $("slow").textContent = typical(2);
  $("lost").textContent = whole.format(now.totals.lost);
  $("lost").classList.toggle("broken", now.totals.lost > 0);
  $("errors").textContent = whole.format(now.totals.classes[4]);
  $("handed-over").textContent = brief(now.totals.handed_over);
  $("reloads").textContent = several(now.totals.reloads, "reload");
  $("refused").textContent = now.totals.refused ? `, ${whole.format(now.totals.refused)} refused` : "";
  $("wanted").textContent = `${whole.format(now.size)} wanted`
    + (now.totals.restarts ? `, ${several(now.totals.restarts, "restart")} since the start` : "")
    + (last?.m ? `, ${bytes(last.m)} together` : "");
  $("workers").replaceChildren(...now.workers.map(workerRow));
}

// The trial of a canary: how long it goes on, and what both sides have failed in the same time.
function showCanary(canary) {
  $("canary").hidden = !canary;
  if (!canary) return;
  const held = canary.state === "held", left = canary.seconds_left, planned = data.deploys.find(each => each.trial)?.trial.seconds;
  $("canary").style.setProperty("--own", held ? styleOf("--warn") : colourOf(canary.generation));
  $("canary-head").textContent = held ? `Generation ${canary.generation} is held without a verdict`
    : left === null ? `Generation ${canary.generation} starts as a canary`
    : `Generation ${canary.generation} is on trial with ${percent(canary.share)} of the traffic`;
  $("canary-left").textContent = held ? "serve promote, or serve rollback" : left === null ? "" : `${lasting(left)} left`;
  $("canary-time").style.width = `${held ? 100 : left === null || !planned ? 0 : 100 * Math.max(0, Math.min(1, 1 - left / planned))}%`;
  $("canary-sides").replaceChildren(...[["canary", canary.generation], ["current", data.now.generation]].filter(([side]) => canary[side]).map(
    ([side, number]) => {
      const {requests, errors} = canary[side], made = element("div", "side"), chip = element("span", "chip number", number);
      chip.style.setProperty("--own", colourOf(number));
      const share = requests ? errors / requests : 0;
      made.append(chip, element("strong", side === "canary" && errors ? "worse" : "", `${three(share * 100)} %`),
        `of its requests failed `, element("span", "quiet", `${whole.format(errors)} of ${whole.format(requests)}`));
      return made;
    }));
}

function subline() {
  const {now} = data, last = data.reloads.findLast(each => each.outcome !== "refused" && each.generation === now.generation);
  const up = `up ${lasting(now.up)}`;
  if (!last) return now.generation ? `since the start, ${up}` : up;
  const since = Math.max(0, now.up - (last.at - data.about.started));
  return `for ${lasting(since)}, after a reload of ${three(last.seconds ?? 0)} s; ${up}`;
}

function notes() {
  const {now} = data, found = [];
  if (now.state !== "running") found.push(element("span", "chip warn", now.state));
  if (now.starting && !now.canary) found.push(element("span", "chip", `generation ${now.starting} starts`));
  if (now.reload_waiting) found.push(element("span", "chip", "a reload waits"));
  if (now.draining) found.push(element("span", "chip warn", "draining"));
  for (const slot of now.degraded) found.push(element("span", "chip bad", `slot ${slot} degraded`));
  if (now.agent_missing) found.push(element("span", "chip bad", "no agent"));
  if (now.agent_returned) found.push(element("span", "chip warn", "the agent has returned"));
  if (data.reloads.at(-1)?.outcome === "refused") found.push(element("span", "chip bad", data.deploys[0]?.outcome === "taken_back" ? "the canary was taken back" : "the newest reload was refused"));
  return found;
}

function workerRow(worker) {
  const row = element("tr"), most = Math.max(1, ...data.now.workers.map(each => each.rate));
  const cell = (kind, ...what) => { const made = row.appendChild(element("td", kind)); made.append(...what); return made; };
  const meter = (share, colour) => {
    const outer = element("span", "meter"), inner = outer.appendChild(element("i"));
    inner.style.width = `${Math.round(Math.min(1, share) * 100)}%`;
    inner.style.setProperty("--own", colour);
    return outer;
  };
  const chip = element("span", "chip number", worker.generation), silent = worker.silent > 3;
  chip.style.setProperty("--own", colourOf(worker.generation));
  cell("", worker.slot);
  cell("", chip);
  cell(`state ${worker.state}`, silent ? element("span", "worse", `silent for ${lasting(worker.silent)}`) : worker.state);
  cell("right", meter(worker.rate / most, colourOf(worker.generation)), element("span", "value", count(worker.rate)));
  cell("right conns", count(worker.connections) + (worker.websockets ? ` (${count(worker.websockets)} ws)` : ""));
  cell("right in-flight", count(worker.in_flight));
  cell("right", meter(worker.cpu, worker.cpu > 0.9 ? styleOf("--bad") : colourOf(worker.generation)), element("span", "value", percent(worker.cpu)));
  cell("right", bytes(worker.memory));
  cell(worker.lag > 100 ? "right lag worse" : "right lag", time(worker.lag));
  cell("right oldest", worker.oldest === null ? "–" : lasting(worker.oldest));
  return row;
}

function record(each) {
  const item = element("li", each.level), what = element("div");
  const at = element("time", "", clock(each.at)), dot = element("i");
  at.dateTime = new Date(each.at * 1000).toISOString();
  item.dataset.event = each.event;
  if (each.generation && each.level === "info") dot.style.setProperty("--own", colourOf(each.generation));
  what.append(element("p", "", each.text));
  if (each.detail) {
    const more = what.appendChild(element("details"));
    more.append(element("summary", "", "Traceback"), element("pre", "", each.detail.trimEnd()));
  }
  item.append(at, dot, what);
  return item;
}

// The deploys

const OUTCOMES = {
  under_way: ["under way", "--now"], started: ["started", "--good"], done: ["done", "--good"], refused: ["refused", "--bad"],
  trial: ["on trial", "--now"], promoted: ["promoted", "--good"], inconclusive: ["inconclusive", "--warn"],
  rolled_back: ["rolled back", "--warn"], taken_back: ["taken back", "--bad"], superseded: ["superseded", "--warn"], given_up: ["given up", "--warn"],
};

function deployRow(each) {
  const item = element("li"), {from, to} = each, at = new Date(each.at * 1000);
  const [word, colour] = OUTCOMES[each.outcome] ?? [each.outcome.replaceAll("_", " "), "--quiet"];
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("en-CA")} `;
  const when = element("time", "", `${day}${clock(each.at)}`);
  when.dateTime = at.toISOString();
  const generations = element("span", "generations"), chip = version => {
    const made = element("span", "chip number", version.generation);
    if (version === to && each.outcome !== "refused") made.style.setProperty("--own", colourOf(version.generation));
    return made;
  };
  if (from) generations.append(chip(from));
  if (from && to) generations.append(element("span", "arrow", "→"));
  if (to) generations.append(chip(to));
  const what = element("div", "what"), head = what.appendChild(element("p")), outcome = head.appendChild(element("b", "", word));
  outcome.style.setProperty("--own", styleOf(colour));
  if (each.seconds !== null) head.append(` after ${time(each.seconds * 1000)}`);
  head.append(` – ${[each.by, each.who, data.deploys.some(other => other.server !== each.server) && `on ${each.server}`].filter(Boolean).join(", ")}`);
  const details = [each.text, ...changesOf(each)].filter(Boolean).join(" · ");
  if (details) what.append(element("p", "quiet small", details));
  const figures = element("span", "figures");
  if (each.handed_over !== null) figures.append(element("b", "", count(each.handed_over)), " handed over, ", element("b", each.cut ? "worse" : "", count(each.cut)), " cut");
  item.dataset.outcome = each.outcome;
  item.append(when, generations, what, figures);
  return item;
}

function changesOf({from, to, options}) {
  if (!to) return [];
  if (!from) return [to.app, to.directory, to.commit.slice(0, 9)];
  const changed = ["app", "directory", "python"].filter(name => from[name] !== to[name]).map(name => apart(from[name], to[name]));
  if (from.commit !== to.commit) changed.push(`${from.commit.slice(0, 9) || "?"} → ${to.commit.slice(0, 9) || "?"}`);
  return [...changed, ...options];
}

// Two paths, without the directories that they have in common.
function apart(before, after) {
  const ours = before.split("/"), theirs = after.split("/");
  let same = 0;
  while (same < ours.length - 1 && ours[same] === theirs[same]) same++;
  return `${ours.slice(same).join("/")} → ${theirs.slice(same).join("/")}`;
}

function showDeploys(deploys) {
  data.deploys = deploys ?? data.deploys;
  $("deploys").replaceChildren(...data.deploys.map(deployRow));
}

function happened(records) {
  data.records = [...data.records, ...records].slice(-200);
  for (const each of records) $("records").prepend(record(each));
  while ($("records").children.length > SHOWN) $("records").lastChild.remove();
}

// The events

const live = text => { $("live").textContent = text; $("live").classList.toggle("on", text === "live"); };
let source = null, heard = 0;  // when something was heard last, or asked for

function connect() {
  source?.close();
  heard = performance.now();
  source = new EventSource("events");  // it comes back by itself, and is told all anew
  source.onerror = () => live("connecting again");
  source.addEventListener("hello", greeted);
  source.addEventListener("sample", sampled);
  source.addEventListener("happened", told);
}

// A connection that died while this machine slept, or a process that has been stopped, says not even that it has ended.
setInterval(() => {
  const quiet = (performance.now() - heard) / 1000;
  if (quiet > AGAIN) connect();
  else if (quiet > SILENT && source.readyState === EventSource.OPEN) live(`nothing heard for ${lasting(quiet)}`);
}, 1000);

function greeted(message) {
  heard = performance.now();
  const {about, samples, records, reloads, deploys, hub, now} = JSON.parse(message.data);
  Object.assign(data, {about, samples, records: [], reloads, now});
  $("app").textContent = about.app;
  $("host").textContent = `${about.listening.join(", ")} on ${about.host}, serve ${about.version}`;
  document.title = `${about.app} – serve`;
  $("records").replaceChildren();
  happened(records);
  showDeploys(deploys);
  showHub(hub);
  live("live");
  $("live").dataset.begun = ++begun;
  show();
  paint();
}

function sampled(message) {
  heard = performance.now();
  const {samples, now, deploys, hub} = JSON.parse(message.data);
  if (deploys) showDeploys(deploys);
  showHub(hub);
  if (data.samples.at(-1)?.t > samples[0].t) data.samples = data.samples.filter(each => each.t <= samples[0].t);  // the clock was set back
  data.samples.push(...samples);
  data.samples.splice(0, data.samples.length - KEPT);
  data.now = now;
  live("live");
  show();
  paint();
}

function told(message) {
  const {records, reloads} = JSON.parse(message.data);
  data.reloads = reloads;
  happened(records);
  paint();
}

connect();

// What the reader does

for (const button of document.querySelectorAll("[data-range]")) {
  button.onclick = () => {
    range = +button.dataset.range;
    for (const each of document.querySelectorAll("[data-range]")) each.setAttribute("aria-pressed", each === button);
    paint();
  };
}
for (const chart of charts) {
  const {canvas} = chart;
  canvas.onpointermove = event => { hovered = Math.max(0, Math.min(1, chart.share(event.offsetX))); paint(); };
  canvas.onpointerleave = () => { hovered = null; paint(); };
}
addEventListener("resize", paint);
dark.addEventListener("change", () => { if (data.now) { show(); showDeploys(); } paint(); });
