// How numbers, times and sizes are written, and elements made.

export const whole = new Intl.NumberFormat("en", {maximumFractionDigits: 0});
const fine = new Intl.NumberFormat("en", {maximumFractionDigits: 1});
const short = new Intl.NumberFormat("en", {notation: "compact", maximumFractionDigits: 1});
export const count = value => value >= 100 || value === 0 ? whole.format(value) : fine.format(value);
export const brief = value => value >= 10000 ? short.format(value) : count(value);
export const three = value => value >= 99.5 ? whole.format(value) : value >= 9.95 ? fine.format(value) : String(+value.toPrecision(2));
export const time = ms => ms === null ? "–" : ms >= 1000 ? `${three(ms / 1000)} s` : `${three(ms)} ms`;
export const percent = share => `${whole.format(share * 100)} %`;
export const bytes = value => {
  const step = value < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(value) / 3));
  return `${step ? three(value / 1000 ** step) : whole.format(value)} ${["B", "kB", "MB", "GB", "TB"][step]}`;
};
export const several = (number, thing) => `${whole.format(number)} ${thing}${number === 1 ? "" : "s"}`;
export const lasting = seconds => {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const first = parts.findIndex(([length]) => seconds >= length);
  if (first < 0) return "0 s";
  const [length, name] = parts[first], rest = parts[first + 1];
  const big = Math.floor(seconds / length), small = rest ? Math.floor(seconds % length / rest[0]) : 0;
  return small && big < 10 ? `${big} ${name} ${small} ${rest[1]}` : `${big} ${name}`;
};

export const $ = id => document.getElementById(id);

export function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text) made.textContent = text;
  return made;
}
