// Charts on canvases: lines, stacked areas and bars over time, with the generations as bands behind them.

const HUES = [262, 158, 335, 70, 205, 300];  // one colour for each generation, in turn
const GAP = 3.5;                             // seconds without a sample that interrupt a line
const FOOT = 17;                             // pixels below a chart, for the times
const HEAD = 8;
const GUTTER = 46;                           // pixels before a chart, for its scale (page.css knows them too)

export const hueOf = generation => HUES[(Math.max(generation, 1) - 1) % HUES.length];
export const dark = matchMedia("(prefers-color-scheme: dark)");
export const colourOf = (generation, alpha = 1) =>
  `oklch(${dark.matches ? 0.7 : 0.6} ${dark.matches ? 0.145 : 0.165} ${hueOf(generation)} / ${alpha})`;

export function styleOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// The least "nice" number that is not below `value`.
function nice(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 3, 4, 5, 6, 8, 10].map(each => each * power).find(each => each >= value * 0.999);
}

export const clock = (at, seconds = true) => new Date(at * 1000).toLocaleTimeString("en-GB",
  {hour: "2-digit", minute: "2-digit", ...(seconds && {second: "2-digit"})});

export class Chart {
  // `series`: [{name, colour, value(sample), format}]; `kind`: "line", "stack", "bars" or "generations";
  // `log`: a logarithmic scale; `format` writes the scale's numbers; `least`: the scale reaches at least this far.
  constructor(canvas, options) {
    Object.assign(this, {canvas, kind: "line", log: false, least: 0, series: [], ...options});
    this.context = canvas.getContext("2d");
  }

  x(at) { return GUTTER + (at - this.window.from) / (this.window.to - this.window.from) * (this.width - GUTTER); }

  // Where in the time shown, from 0 to 1, the pixel `x` is.
  share(x) { return (x - GUTTER) / (this.width - GUTTER); }

  y(value) {
    const height = this.height - FOOT - HEAD;
    const share = this.log
      ? Math.log(Math.max(value, this.bottom) / this.bottom) / Math.log(this.top / this.bottom)
      : value / this.top;
    return HEAD + height * (1 - Math.min(1, share));
  }

  draw(samples, window, reloads, hovered) {
    const {canvas, context} = this, ratio = devicePixelRatio || 1;
    this.window = window;
    this.width = canvas.clientWidth;
    this.height = canvas.clientHeight;
    if (canvas.width !== Math.round(this.width * ratio) || canvas.height !== Math.round(this.height * ratio)) {
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    this.scale(samples);
    context.save();
    context.beginPath();
    context.rect(GUTTER, 0, this.width - GUTTER, this.height);
    context.clip();  // the sample before the first shown lies outside
    this.bands(samples);
    this.grid();
    this.reloads(reloads);
    for (const run of runs(samples)) this[this.kind](run);
    if (hovered) this.cross(hovered);
    context.restore();
    this.labels();
  }

  // Whether there is nothing to see: all values are 0, or not known.
  isEmpty(samples) { return samples.every(sample => this.series.every(each => !each.value(sample))); }

  scale(samples) {
    const all = [];
    for (const sample of samples) {
      if (this.kind === "generations") all.push(Object.values(sample.r).reduce((a, b) => a + b, 0));
      else if (this.kind === "stack") all.push(this.series.reduce((sum, each) => sum + (each.value(sample) ?? 0), 0));
      else for (const each of this.series) { const value = each.value(sample); if (value !== null) all.push(value); }
    }
    const most = all.reduce((a, b) => Math.max(a, b), this.least);
    if (this.log) {
      const positive = all.filter(each => each > 0);
      this.bottom = 10 ** Math.floor(Math.log10(positive.reduce((a, b) => Math.min(a, b), 1)));
      this.top = Math.max(this.bottom * 100, 10 ** Math.ceil(Math.log10(Math.max(most, this.bottom * 1.001))));
    } else {
      this.top = nice(most * 1.04);
    }
  }

  // The background: who served when.
  bands(samples) {
    const bottom = this.height - FOOT;
    for (const band of generationsOf(samples)) {
      if (!band.generation) continue;
      const from = this.x(band.from), to = this.x(band.to);
      this.context.fillStyle = colourOf(band.generation, dark.matches ? 0.11 : 0.075);
      this.context.fillRect(from, HEAD, to - from, bottom - HEAD);
    }
  }

  grid() {
    const {context} = this;
    context.lineWidth = 1;
    context.strokeStyle = styleOf("--grid");
    for (const value of this.ticks()) {
      const y = Math.round(this.y(value)) + 0.5;
      context.beginPath();
      context.moveTo(GUTTER, y);
      context.lineTo(this.width, y);
      context.stroke();
    }
  }

  // The scales' numbers.
  labels() {
    const {context} = this;
    context.font = "10.5px system-ui, sans-serif";
    context.fillStyle = styleOf("--quiet");
    context.textAlign = "right";
    for (const value of this.ticks()) context.fillText(this.format(value), GUTTER - 7, Math.round(this.y(value)) + 4);
    const {from, to} = this.window, step = [10, 15, 30, 60, 120, 300].find(each => (this.width - GUTTER) * each / (to - from) >= 74) ?? 600;
    context.textAlign = "center";
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const x = this.x(at);
      if (x > GUTTER + 20 && x < this.width - 26) context.fillText(clock(at, step < 60), x, this.height - 4);
    }
  }

  ticks() {
    if (!this.log) return [0, this.top / 2, this.top];
    const found = [];
    for (let value = this.bottom; value <= this.top * 1.001; value *= 10) found.push(value);
    return found.length > 5 ? found.filter((_, index) => index % 2 === 0) : found;
  }

  reloads(reloads) {
    for (const reload of reloads) {
      if (reload.at < this.window.from || reload.at > this.window.to) continue;
      const x = Math.round(this.x(reload.at)) + 0.5, {context} = this;
      context.strokeStyle = reload.outcome === "refused" ? styleOf("--bad") : colourOf(reload.generation, 0.75);
      context.setLineDash([3, 3]);
      context.beginPath();
      context.moveTo(x, 0);
      context.lineTo(x, this.height - FOOT);
      context.stroke();
      context.setLineDash([]);
    }
  }

  line(run) {
    for (const each of this.series) {
      const colour = each.colour();
      let drawing = [];
      for (const sample of [...run, null]) {
        const value = sample === null ? null : each.value(sample);
        if (value !== null) { drawing.push([this.x(sample.t), this.y(value)]); continue; }
        if (drawing.length) this.stroke(drawing, colour, this.series.length === 1);
        drawing = [];
      }
    }
  }

  stroke(points, colour, filled) {
    const {context} = this;
    if (points.length === 1) points = [[points[0][0] - 1.5, points[0][1]], points[0]];
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x, y);
    context.strokeStyle = colour;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.stroke();
    if (!filled) return;
    context.lineTo(points.at(-1)[0], this.height - FOOT);
    context.lineTo(points[0][0], this.height - FOOT);
    context.globalAlpha = 0.16;
    context.fillStyle = colour;
    context.fill();
    context.globalAlpha = 1;
  }

  stack(run) {
    this.areas(run, this.series.map(each => ({colour: each.colour(), value: each.value})));
  }

  // What each generation answered, the oldest at the bottom.
  generations(run) {
    const numbers = new Set();
    for (const sample of run) for (const number of Object.keys(sample.r)) numbers.add(+number);
    this.areas(run, [...numbers].sort((a, b) => a - b).map(
      number => ({colour: colourOf(number), value: sample => sample.r[number] ?? 0})), 0.82);
  }

  areas(run, layers, alpha = 0.72) {
    if (run.length < 2) return;
    const {context} = this, floor = run.map(() => 0);
    for (const layer of layers) {
      const ceiling = run.map((sample, index) => floor[index] + (layer.value(sample) ?? 0));
      for (let begin = 0; begin < run.length; begin++) {  // only where there is something, with the slopes to it
        if (ceiling[begin] === floor[begin]) continue;
        let end = begin;
        while (end + 1 < run.length && ceiling[end + 1] > floor[end + 1]) end++;
        const first = Math.max(0, begin - 1), last = Math.min(run.length - 1, end + 1);
        context.beginPath();
        for (let index = first; index <= last; index++) context.lineTo(this.x(run[index].t), this.y(ceiling[index]));
        for (let index = last; index >= first; index--) context.lineTo(this.x(run[index].t), this.y(floor[index]));
        context.globalAlpha = alpha;
        context.fillStyle = layer.colour;
        context.fill();
        context.globalAlpha = 1;
        begin = end;
      }
      floor.splice(0, floor.length, ...ceiling);
    }
  }

  bars(run) {
    const {context} = this, width = Math.max(2, (this.width - GUTTER) / (this.window.to - this.window.from) - 1);
    for (const sample of run) {
      const value = this.series[0].value(sample);
      if (!value) continue;
      context.fillStyle = this.series[0].colour(sample);
      const y = this.y(value);
      context.fillRect(this.x(sample.t) - width, y, width, this.height - FOOT - y);
    }
  }

  cross(sample) {
    const x = Math.round(this.x(sample.t)) + 0.5, {context} = this;
    context.strokeStyle = styleOf("--quiet");
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x, HEAD);
    context.lineTo(x, this.height - FOOT);
    context.stroke();
  }
}

// Samples without a gap between them.
function runs(samples) {
  const found = [];
  for (const sample of samples) {
    const last = found.at(-1);
    if (last && sample.t - last.at(-1).t <= GAP) last.push(sample);
    else found.push([sample]);
  }
  return found;
}

// Who served from when to when.
export function generationsOf(samples) {
  const found = [];
  for (const sample of samples) {
    const last = found.at(-1);
    if (last?.generation === sample.g) last.to = sample.t;
    else found.push({generation: sample.g, from: last ? last.to : sample.t - 1, to: sample.t});
  }
  return found;
}
