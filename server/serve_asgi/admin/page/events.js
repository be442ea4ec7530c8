// What has happened: the marks above the main chart, the deploys and the list of events.

import {clock, colourOf, styleOf} from "./charts.js";
import {$, count, element, three, time} from "./format.js";

const KEPT = 200;   // events
const SHOWN = 60;   // of them
const NEAR = 18;    // pixels between two marks, below which the later one stands higher
const BY_REQUEST = new Set(["server_started", "reload_started", "reload_finished", "reload_refused", "canary_started",
  "rollback_started", "rollback_finished", "rollback_refused"]);  // somebody has asked for what these tell
const KINDS = {  // of marks: what stands in them, and what that means
  done: ["↻", "reload"], refused: ["×", "refused"], again: ["↺", "roll-back"], trial: ["%", "trial begins"],
  back: ["↩", "canary taken back"], died: ["!", "worker died"],
};
const OUTCOMES = {
  under_way: ["under way", "--now"], started: ["started", "--good"], done: ["done", "--good"], refused: ["refused", "--bad"],
  trial: ["on trial", "--now"], promoted: ["promoted", "--good"], inconclusive: ["inconclusive", "--warn"],
  rolled_back: ["rolled back", "--warn"], taken_back: ["taken back", "--bad"], superseded: ["superseded", "--warn"], given_up: ["given up", "--warn"],
};

let records = [], reloads = [], deploys = [];

// Who asked for what this event tells: "HUP", "serve reload, ada, from bash"; "" if nobody did.
function actorOf({event, at, by, generation}) {
  if (!BY_REQUEST.has(event)) return by ?? "";
  const found = deploys.find(each => each.at <= at + 0.2 && each.to?.generation === generation);  // the newest are first
  return found ? [found.by, found.who].filter(Boolean).join(", ") : by ?? "";
}

export function chip(generation, coloured = true) {
  const made = element("span", "chip number", generation);
  made.style.setProperty("--own", coloured ? colourOf(generation) : styleOf("--quiet"));
  return made;
}

// The marks

function markOf({event, outcome, at, generation, text, reason, seconds}) {
  if (event === "worker_died") return {at, kind: "died", generation, head: "A worker died", text};
  if (event === "canary_started") return {at, kind: "trial", generation, head: `Generation ${generation} is on trial`, text};
  if (event === "canary_withdrawn") return {at, kind: "back", generation, head: "The canary is taken back", text};
  if (outcome === "refused") return {at, kind: "refused", generation, head: "Reload refused", text: reason ?? text ?? ""};
  if (!outcome) return null;
  const again = outcome === "rolled_back", took = seconds === undefined ? "" : `after ${three(seconds)} s`;
  return {at, kind: again ? "again" : "done", generation, head: `Generation ${generation} serves${again ? " again: rolled back" : ""}`, text: took};
}

// `place(at)` is where a time stands, from 0 to 1.
export function placeMarks(window, place) {
  const holder = $("marks"), old = new Map([...holder.children].map(each => [each.dataset.key, each])), kinds = new Set();
  const found = [...reloads, ...records.filter(each => !("outcome" in each))].filter(each => each.at >= window.from && each.at <= window.to + 1.5);
  const withdrawn = new Set(found.filter(each => each.event === "canary_withdrawn").map(each => each.generation));
  let before = -Infinity, high = false, any = false;
  for (const event of found.sort((a, b) => a.at - b.at)) {
    const each = markOf(event);
    if (!each || each.kind === "refused" && withdrawn.has(each.generation)) continue;  // which says the same again
    const key = `${each.kind} ${each.at}`, mark = old.get(key) ?? element("button", `mark ${each.kind}`, KINDS[each.kind][0]);
    const x = place(each.at) * holder.clientWidth, actor = actorOf({event: "reload_finished", ...event});
    old.delete(key);
    kinds.add(each.kind);
    high = x - before < NEAR && !high;
    any ||= high;
    before = x;
    mark.dataset.key = key;
    mark.dataset.outcome = each.kind === "again" ? "done" : each.kind;
    if (each.generation) mark.dataset.generation = each.generation;
    if (each.generation && ["done", "again", "trial"].includes(each.kind)) mark.style.setProperty("--own", colourOf(each.generation));
    mark.style.left = `${place(each.at) * 100}%`;
    mark.classList.toggle("high", high);
    mark.setAttribute("aria-label", [`${clock(each.at)} ${each.head}`, each.text, actor && `by ${actor}`].filter(Boolean).join(", "));
    mark.onmouseenter = mark.onfocus = () => tell(mark, each, actor);
    mark.onmouseleave = mark.onblur = () => { $("tip").hidden = true; };
    if (!mark.parentNode) holder.append(mark);
  }
  for (const gone of old.values()) gone.remove();
  holder.classList.toggle("two", any);
  $("legend-marks").replaceChildren(...Object.keys(KINDS).filter(kind => kinds.has(kind)).map(kind => {
    const item = element("span");
    item.append(element("i", `mark ${kind}`, KINDS[kind][0]), KINDS[kind][1]);
    return item;
  }));
}

function tell(mark, {at, generation, head, text}, actor) {
  const tip = $("tip"), box = mark.getBoundingClientRect(), first = element("b");
  if (generation) {
    const dot = first.appendChild(element("i"));
    dot.style.setProperty("--own", colourOf(generation));
  }
  first.append(`${clock(at)}  ${head}`);
  tip.replaceChildren(first, ...[text, actor && `by ${actor}`].filter(Boolean).map(line => element("span", "", line)));
  tip.hidden = false;
  const left = Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, document.documentElement.clientWidth - tip.offsetWidth - 12);
  tip.style.left = `${Math.max(12, left)}px`;
  tip.style.top = `${box.top + scrollY - tip.offsetHeight - 8}px`;
}

// The deploys

function deployRow(each) {
  const item = element("li"), {from, to} = each, at = new Date(each.at * 1000);
  const [word, colour] = OUTCOMES[each.outcome] ?? [each.outcome.replaceAll("_", " "), "--quiet"];
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("en-CA")} `;
  const when = element("time", "", `${day}${clock(each.at)}`), generations = element("span", "generations");
  when.dateTime = at.toISOString();
  if (from) generations.append(chip(from.generation, false));
  if (from && to) generations.append(element("span", "arrow", "→"));
  if (to) generations.append(chip(to.generation, each.outcome !== "refused"));
  const what = element("div", "what"), head = what.appendChild(element("p")), outcome = head.appendChild(element("b", "", word));
  outcome.style.setProperty("--own", styleOf(colour));
  if (each.seconds !== null) head.append(` after ${time(each.seconds * 1000)}`);
  head.append(` – ${[each.by, each.who, deploys.some(other => other.server !== each.server) && `on ${each.server}`].filter(Boolean).join(", ")}`);
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

// Show these deploys; without any, the same ones again, in other colours.
export function showDeploys(news = deploys) {
  deploys = news;
  $("deploys").replaceChildren(...deploys.map(deployRow));
  for (const item of $("records").children) complete(item);
}

// The events

function recordRow(each) {
  const item = element("li", each.level), what = element("div"), at = element("time", "", clock(each.at));
  at.dateTime = new Date(each.at * 1000).toISOString();
  item.dataset.event = each.event;
  item.record = each;
  what.append(element("p", "", each.text));
  if (each.detail) {
    const more = what.appendChild(element("details"));
    more.append(element("summary", "", "Traceback"), element("pre", "", each.detail.trimEnd()));
  }
  item.append(at, element("span", "whose"), what, element("span", "actor quiet small"));
  complete(item);
  return item;
}

// What may change later: the colour of the generation, and who it was.
function complete(item) {
  const {record} = item, actor = actorOf(record);
  item.querySelector(".whose").replaceChildren(record.generation ? chip(record.generation) : "");
  item.querySelector(".actor").textContent = actor;
}

// Begin anew: the page has connected again.
export function forgetEvents() {
  records = [];
  $("records").replaceChildren();
}

export function happened(news, allReloads) {
  reloads = allReloads;
  records = [...records, ...news].slice(-KEPT);
  for (const each of news) $("records").prepend(recordRow(each));
  while ($("records").children.length > SHOWN) $("records").lastChild.remove();
}
