// Messages, schedules and shared state: the first of each, as the listener has reported them.

const $ = id => document.getElementById(id);
const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const FULL = 1000;   // messages in one queue, beyond which senders wait
const FAILED = new Set(["failed", "timeout", "cut", "died"]);
let latest = {}, before = new Map(), last = 0;   // the last report; what was delivered by topic, and when that was (ms)

function row(...cells) {
  const made = document.createElement("tr");
  for (const [text, kind = ""] of cells) {
    const cell = made.appendChild(document.createElement("td"));
    cell.textContent = text;
    if (kind) cell.className = kind;
  }
  return made;
}

function fill(name, rows, total, noun) {
  $(name).hidden = !rows.length;
  $(`${name}-rows`).replaceChildren(...rows);
  $(`${name}-more`).textContent = total > rows.length ? `${rows.length} of ${whole.format(total)} ${noun}` : "";
}

function when(seconds) {
  const left = Math.max(0, seconds);
  return left < 90 ? `${whole.format(left)} s` : left < 5400 ? `${whole.format(left / 60)} min` : left < 172800 ? `${whole.format(left / 3600)} h` : `${whole.format(left / 86400)} d`;
}

// Called each second; `report` is undefined if nothing has changed.
export function showHub(report) {
  const hub = latest = report ?? latest;
  const now = Date.now(), took = (now - last) / 1000, rates = new Map();
  for (const each of hub.topics ?? []) {
    const earlier = before.get(each.topic);
    if (earlier !== undefined && took < 10) rates.set(each.topic, Math.max(0, each.delivered - earlier) / took);
  }
  before = new Map((hub.topics ?? []).map(each => [each.topic, each.delivered]));
  last = now;
  fill("topics", (hub.topics ?? []).map(each => row(
    [each.topic, "name"], [whole.format(each.subscribers), "right"], [whole.format(each.waiting), each.waiting >= FULL ? "right worse" : "right"],
    [whole.format(each.in_flight), "right"], [rates.has(each.topic) ? whole.format(rates.get(each.topic)) : "–", "right"])), hub.topics_total, "topics: serve messages");
  fill("schedules", (hub.schedules ?? []).map(each => row(
    [each.name, "name"], [each.when, "name when quiet"],
    [each.running ? "running" : each.paused ? "paused" : each.next === null ? "–" : `in ${when(each.next - now / 1000)}`, each.paused ? "worse" : ""],
    [each.last ? `${each.last.outcome} ${when(now / 1000 - each.last.at)} ago` : "–", FAILED.has(each.last?.outcome) ? "worse" : ""])), hub.schedules_total, "schedules: serve schedules");
  fill("keys", (hub.keys ?? []).map(each => row(
    [each.key, "name"], [each.value || `${whole.format(each.size)} bytes`, "value quiet"])), hub.keys_total, "keys, written last: serve shared list");
  $("hub").hidden = ["topics", "schedules", "keys"].every(name => $(name).hidden);
}
