// Draws what sight.json tells, again and again: a tree of places. Steps of a
// sequence are side by side, those of a group above each other.
const pause = 500; // milliseconds
const box = { width: 208, line: 16, gapX: 40, gapY: 14, pad: 10 };
const svgns = "http://www.w3.org/2000/svg";

const across = new Set(["flow", "pipeline", "sequence"]);
const stacked = new Set(["group", "union", "join", "dispatch", "each"]);

/** Lays out a place: its size, and how to draw it at a point, which returns where lines leave it. */
function layout(s) {
  const children = (s.children ?? []).map(layout);
  if (children.length === 0) return leaf(s);
  if (across.has(s.kind)) return row(children);
  const column = stack(s, children);
  if (s.kind === "group" || s.kind === "union") return column;
  return row(s.kind === "join" ? [column, leaf(s)] : [leaf(s), column]);
}

function row(parts) {
  return {
    width: parts.reduce((w, p) => w + p.width, 0) + box.gapX * (parts.length - 1),
    height: Math.max(...parts.map((p) => p.height)),
    draw(to, x, y, from) {
      for (const p of parts) {
        from = p.draw(to, x, y + (this.height - p.height) / 2, from);
        x += p.width + box.gapX;
      }
      return from;
    },
  };
}

function stack(s, parts) {
  const title = s.kind === "group" && s.name ? box.line : 0;
  return {
    width: Math.max(...parts.map((p) => p.width)) + 2 * box.pad,
    height: parts.reduce((h, p) => h + p.height, 0) + box.gapY * (parts.length - 1) + 2 * box.pad + title,
    draw(to, x, y, from) {
      if (s.kind === "group") {
        add(to, "rect", { class: "group", x, y, width: this.width, height: this.height, rx: 6 });
        if (title) text(to, s.name, x + box.pad, y + box.line, "soft");
      }
      y += box.pad + title;
      return parts.flatMap((p) => {
        const ends = p.draw(to, x + box.pad, y, from);
        y += p.height + box.gapY;
        return ends;
      });
    },
  };
}

function leaf(s) {
  const lines = describe(s);
  return {
    width: box.width,
    height: lines.length * box.line + 2 * box.pad,
    draw(to, x, y, from) {
      const middle = y + this.height / 2;
      for (const f of from) {
        const bend = (x - f.x) / 2;
        add(to, "path", { d: `M${f.x},${f.y} C${f.x + bend},${f.y} ${x - bend},${middle} ${x},${middle}` });
      }
      const classes = [s.kind];
      if (s.counts.running > 0) classes.push("busy");
      if (s.counts.failed > 0) classes.push("failed");
      const g = add(to, "g", { class: classes.join(" "), "data-path": s.path });
      add(g, "rect", { x, y, width: this.width, height: this.height, rx: 6 });
      lines.forEach(([line, kind], i) => text(g, line, x + box.pad, y + box.pad + box.line * (i + 0.8), kind));
      return [{ x: x + this.width, y: middle }];
    },
  };
}

/** The lines in a place's box, and what they look like. */
function describe(s) {
  const c = s.counts;
  const name = (s.key ? `${s.key}: ` : "") + (s.name || s.kind);
  const lines = [[name, "name"], ...(s.policy ?? []).map((p) => [p, "soft"])];
  if (c.calls > 0) {
    const part = c.given ? ` of ${c.given}` : "";
    lines.push([`${c.calls - c.running - c.retried}${part} done${c.running ? `, ${c.running} running` : ""}${rate(s)}`]);
    lines.push([`mean ${duration(c.mean)}, longest ${duration(c.longest)}`, "soft"]);
  }
  if (c.skipped > 0) lines.push([`${c.skipped} skipped`, "soft"]);
  const bad = [c.failed ? `${c.failed} failed` : "", c.retried ? `${c.retried} retried` : ""].filter(Boolean);
  if (bad.length > 0) lines.push([bad.join(", "), "bad"]);
  return lines.map(([l, kind]) => [l.length > 32 ? `${l.slice(0, 31)}…` : l, kind]);
}

let before = new Map(); // calls by path, and when that was
let now = new Map();

function rate(s) {
  const at = performance.now();
  now.set(s.path, { calls: s.counts.calls, at });
  const last = before.get(s.path);
  if (!last || s.counts.calls <= last.calls) return "";
  const n = ((s.counts.calls - last.calls) / (at - last.at)) * 1000;
  return `, ${n < 10 ? n.toFixed(1) : Math.round(n)}/s`;
}

/** A duration in nanoseconds, with its unit. */
function duration(ns) {
  for (const [unit, size] of [["s", 1e9], ["ms", 1e6], ["µs", 1e3]]) {
    if (ns >= size) return `${Number((ns / size).toPrecision(3))} ${unit}`;
  }
  return `${ns} ns`;
}

function add(to, name, attributes) {
  const e = document.createElementNS(svgns, name);
  for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v);
  to.append(e);
  return e;
}

function text(to, what, x, y, kind = "") {
  add(to, "text", { x, y, class: kind }).textContent = what;
}

function draw(sights) {
  before = now;
  now = new Map();
  const flows = sights.map((s) => {
    const section = document.createElement("section");
    const title = document.createElement("h2");
    title.textContent = s.name;
    const svg = document.createElementNS(svgns, "svg");
    const l = layout(s);
    svg.setAttribute("width", l.width + 2);
    svg.setAttribute("height", l.height + 2);
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `the flow ${s.name}`);
    l.draw(svg, 1, 1, []);
    section.append(title, svg);
    return section;
  });
  document.querySelector("#flows").replaceChildren(...flows);
}

const state = document.querySelector("#state");

async function show() {
  try {
    const answer = await fetch("sight.json");
    if (!answer.ok) throw new Error(`the server said ${answer.status}`);
    draw(await answer.json());
    state.textContent = "live";
    state.className = "";
  } catch (e) { // the last drawing stays
    state.textContent = `not live: ${e.message}`;
    state.className = "down";
  }
  setTimeout(show, pause);
}

show();
