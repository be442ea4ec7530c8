// The page: takes the server-sent events, keeps ten minutes of samples, and shows them.

import {Chart, clock, colourOf, dark, generationsOf, hueOf, styleOf} from "./charts.js";
import {chip, forgetEvents, happened, placeMarks, showDeploys} from "./events.js";
import {$, brief, bytes, count, element, lasting, percent, several, three, time, whole} from "./format.js";
import {showHub} from "./hub.js";

const KEPT = 600;      // samples
const SHORTEST = 20;   // seconds that the charts show at least
const SILENT = 3.5;    // seconds without a sample that are told
const AGAIN = 15;      // seconds without one after which the page asks anew

const sum = values => values.reduce((a, b) => a + b, 0);
const own = name => () => styleOf(name);

const data = {samples: [], reloads: [], deploys: [], now: null, about: null};
const ranges = [...document.querySelectorAll("[data-range]")], RANGES = ranges.map(each => +each.dataset.range);
let range = 300, hovered = null, painting = false, generation = null, begun = 0;

// The charts

const SMALL = [
  {name: "Latency", kind: "line", log: true, format: time, series: [
    {name: "50 %", colour: own("--one"), value: s => s.d[0], format: time},
    {name: "90 %", colour: own("--two"), value: s => s.d[1], format: time},
    {name: "99 %", colour: own("--three"), value: s => s.d[2], format: time}]},
  {name: "Streams: first byte, duration", kind: "line", log: true, format: time, series: [
    {name: "50 %", colour: own("--one"), value: s => s.z[0], format: time},
    {name: "99 %", colour: own("--two"), value: s => s.z[1], format: time},
    {name: "duration", colour: own("--three"), value: s => s.z[2], format: time}]},
  {name: "WebSockets: accept, duration", kind: "line", log: true, format: time, series: [
    {name: "50 %", colour: own("--one"), value: s => s.w[0], format: time},
    {name: "99 %", colour: own("--two"), value: s => s.w[1], format: time},
    {name: "duration", colour: own("--three"), value: s => s.w[2], format: time}]},
  {name: "Connections", kind: "stack", format: brief, least: 4, series: [
    {name: "active", colour: own("--one"), value: s => s.c[1], format: count},
    {name: "idle", colour: own("--two"), value: s => s.c[0], format: count},
    {name: "WebSockets", colour: own("--three"), value: s => s.c[2], format: count}]},
  {name: "Responses per second", kind: "stack", format: brief, least: 1, series: [
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
  return Object.assign(new Chart(canvas, each), {card, legend});
})];

function paint() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => { painting = false; if (data.samples.length) paintNow(); });
}

function paintNow() {
  const to = data.samples.at(-1).t, served = data.samples.find(sample => sample.g) ?? data.samples[0];
  const span = Math.max(SHORTEST, to - served.t + 1), shownRange = Math.min(range, RANGES.find(each => each >= span) ?? range);
  const from = to - Math.min(shownRange, span);
  const begin = data.samples.findIndex(sample => sample.t >= from);
  const shown = data.samples.slice(Math.max(0, begin - 1)), window = {from, to};
  const at = hovered === null ? null : nearest(shown, window, hovered);
  const folded = charts.filter(chart => chart.card && (chart.card.hidden = chart.isEmpty(shown)));
  $("folded").hidden = !folded.length;
  $("folded").textContent = `Nothing in this time: ${folded.map(chart => chart.name.toLowerCase()).join(" · ")}`;
  for (const chart of charts) {
    if (chart.card?.hidden) continue;
    chart.draw(shown, window, data.reloads, at);
    if (chart.legend) writeLegend(chart, at ?? shown.at(-1));
  }
  ranges.forEach((button, index) => {
    button.disabled = index > 0 && RANGES[index - 1] >= span;  // a shorter one shows all there is
    button.setAttribute("aria-pressed", RANGES[index] === shownRange);
  });
  writeMainLegend(at ?? shown.at(-1), at !== null);
  placeBands(shown, window);
  placeMarks(window, at => share(window, at));
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

const share = (window, at) => Math.max(0, Math.min(1, (at - window.from) / (window.to - window.from)));

function placeBands(samples, window) {
  $("bands").replaceChildren(...generationsOf(samples).filter(each => each.generation && each.to > window.from).map(each => {
    const band = element("div", "band"), from = Math.max(each.from, window.from);
    const width = (each.to - from) / (window.to - window.from) * $("bands").clientWidth;
    band.dataset.generation = each.generation;
    band.textContent = width > 110 ? `generation ${each.generation}` : width > 16 ? each.generation : "";
    band.style.setProperty("--own", colourOf(each.generation));
    band.style.left = `${share(window, from) * 100}%`;
    band.style.width = `${Math.max(1, width - 2)}px`;
    return band;
  }));
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
  $("subline").replaceChildren(...subline().map(line => element("span", "", line)));
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
  $("reloads").textContent = `in ${several(now.totals.reloads, "reload")}`;
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
      const {requests, errors} = canary[side], made = element("div", "side");
      const share = requests ? errors / requests : 0;
      made.append(chip(number), element("strong", side === "canary" && errors ? "worse" : "", `${three(share * 100)} %`),
        `of its requests failed `, element("span", "quiet", `${whole.format(errors)} of ${whole.format(requests)}`));
      return made;
    }));
}

function subline() {
  const {now} = data, last = data.reloads.findLast(each => each.outcome !== "refused" && each.generation === now.generation);
  const up = `up ${lasting(now.up)}`;
  if (!last) return now.generation ? ["since the start", up] : [up];
  const since = Math.max(0, now.up - (last.at - data.about.started));
  return [`for ${lasting(since)}, after ${last.outcome === "rolled_back" ? "a roll-back" : "a reload"} of ${time((last.seconds ?? 0) * 1000)}`, up];
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
  const silent = worker.silent > 3;
  cell("", worker.slot);
  cell("", chip(worker.generation));
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
  Object.assign(data, {about, samples, reloads, deploys, now});
  $("app").textContent = about.app;
  $("host").textContent = `${about.listening.join(", ")} on ${about.host}, serve ${about.version}`;
  document.title = `${about.app} – serve`;
  forgetEvents();
  happened(records, reloads);
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
  if (deploys) showDeploys(data.deploys = deploys);
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
  happened(records, reloads);
  paint();
}

connect();

// What the reader does

for (const button of ranges) button.onclick = () => { range = +button.dataset.range; paint(); };
for (const chart of charts) {
  const {canvas} = chart;
  canvas.onpointermove = event => { hovered = Math.max(0, Math.min(1, chart.share(event.offsetX))); paint(); };
  canvas.onpointerleave = () => { hovered = null; paint(); };
}
addEventListener("resize", paint);
dark.addEventListener("change", () => { if (data.now) { show(); showDeploys(); } paint(); });
