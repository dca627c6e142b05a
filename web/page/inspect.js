/** A look inside: the tokens, the order in which a layer reads them, its step sizes, its result. */
import { drawPixels, element, extremes, heat, sharp } from "./colours.js";

/** @typedef {import("../npm/engine.js").Info} Info */
/** @typedef {import("../npm/engine.js").Stage} Stage */

/** Values of Info.direction, and of Info.stem. */
const [ALTERNATE, BIDIRECTIONAL, CROSS] = [1, 2, 3];
const PATCH = 0;
const PLAY_MS = 4000;
/** Numbers of a larger model (members, layers, tokens) are not kept. */
const MOST_NUMBERS = 1e6;

/** Return the grid of tokens. @param {Info} info */
function gridOf(info) {
  if (info.stem === PATCH)
    return { rows: info.height / info.patch_height, columns: info.width / info.patch_width };
  const side = (/** @type {number} */ n) => Math.ceil(Math.ceil(n / 2) / 2);
  return { rows: side(info.height), columns: side(info.width) };
}

/**
 * Return how a layer reads the tokens: the words for it, and its scans.
 * @param {Info} info
 * @param {number} layer
 */
export function readingOrder(info, layer) {
  const { rows, columns } = gridOf(info);
  const turn = { [ALTERNATE]: 2 * (layer % 2), [CROSS]: layer % 4 }[info.direction] ?? 0;
  const byColumns = turn % 2 === 1;
  const tokens = Array.from({ length: rows * columns }, (_, i) =>
    byColumns ? (i % rows) * columns + Math.floor(i / rows) : i);
  const backwards = [...tokens].reverse();
  const words = `${byColumns ? "Column by column" : "Row by row"}${turn > 1 ? ", backwards" : ""}.`;
  if (info.direction === BIDIRECTIONAL)
    return { words: "Row by row, then backwards.", byColumns, scans: [tokens, backwards] };
  return { words, byColumns, scans: [turn > 1 ? backwards : tokens] };
}

/** @typedef {{ name: string, layer: number, values: number[] }} Kept */

/**
 * Keep what is shown of a stage: of the step sizes the mean, of the residual the root mean square
 * of each token; the logits.
 * @param {Stage} stage
 * @returns {Kept | undefined}
 */
function keepShown({ name, layer, rows, columns, values }) {
  if (name === "logits") return { name, layer, values: [...values] };
  const isResidual = name === "residual";
  if (!isResidual && !name.startsWith("delta")) return undefined;
  const numbers = Array.from({ length: rows }, (_, row) => {
    const token = values.subarray(row * columns, (row + 1) * columns);
    const sum = token.reduce((total, value) => total + (isResidual ? value * value : value), 0);
    return isResidual ? Math.sqrt(sum / columns) : sum / columns;
  });
  return { name, layer, values: numbers };
}

/** Write a number with three digits. @param {number} value */
const short = (value) => String(Number(value.toPrecision(3)));

/** The section "Look inside". */
export class Inspector {
  constructor() {
    this.image = document.createElement("canvas");
    /** @type {{ model: any, pixels: Uint8Array, asked: number, members: Kept[][] } | null} */
    this.shown = null;
    /** Time at which playing began; 0 while it doesn't. */
    this.playing = 0;
    for (const id of ["member", "layer"])
      element(id).addEventListener("input", () => this.select());
    element("step").addEventListener("input", () => {
      this.stop();
      this.draw();
    });
    element("play").addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    new ResizeObserver(() => this.draw()).observe(element("inside"));
  }

  /**
   * Show what the model does with an image, or nothing.
   * @param {any} model
   * @param {Uint8Array} [pixels]
   * @param {number} [asked] Members that gave the answer.
   */
  show(model, pixels, asked = 0) {
    element("inside").hidden = !pixels;
    element("inside").setAttribute("aria-busy", "false");
    this.stop();
    this.shown = null;
    if (!pixels) return;
    const numbers = model.members.reduce(
      (/** @type {number} */ sum, /** @type {Info} */ one) => sum + one.n_layers * one.length, 0);
    if (numbers > MOST_NUMBERS) {
      element("inside").hidden = true;
      return;
    }
    const margin = model.info.exit_margin;
    model.setExitMargin(0); // members that were not asked can be looked at, too
    try {
      this.shown = { model, pixels, asked, members: model.trace(pixels, keepShown) };
    } catch {
      element("inside").hidden = true; // a member that was not asked overflows
      return;
    } finally {
      model.setExitMargin(margin);
    }
    drawPixels(this.image, pixels, model.info);
    element("member").max = model.info.members;
    element("member-label").hidden = model.info.members === 1;
    this.select();
  }

  /** Show the chosen member and layer. */
  select() {
    if (!this.shown) return;
    const { model, members, asked } = this.shown;
    const member = Number(element("member").value) - 1, info = model.members[member];
    element("layer").max = info.n_layers;
    element("layer-label").hidden = info.n_layers === 1;
    const layer = Number(element("layer").value) - 1;
    const stages = members[member].filter((stage) => stage.layer === layer);
    const grid = gridOf(info), order = readingOrder(info, layer);
    const sizes = stages.filter(({ name }) => name.startsWith("delta")).map(({ values }) => values);
    const tokens = order.scans.flat();
    this.view = {
      info, grid, order, tokens, member, layer,
      // Rows of a layer that reads by columns are in column order.
      delta: tokens.map((token, step) => {
        const of = sizes[Math.floor(step / info.length)];
        const { rows, columns } = grid;
        return of[order.byColumns ? (token % columns) * rows + Math.floor(token / columns) : token];
      }),
      residual: stages.find(({ name }) => name === "residual").values,
    };
    element("step").max = tokens.length;
    if (!this.playing) element("step").value = tokens.length;
    element("tokens").textContent = info.length;
    element("order-text").textContent = order.words;
    element("member-text").textContent = `Member ${member + 1} of ${members.length}`;
    element("layer-text").textContent = `Layer ${layer + 1} of ${info.n_layers}`;
    for (const name of ["delta", "residual"]) {
      const [low, high] = extremes(this.view[name]);
      element(`${name}-range`).textContent = `${short(low)} (dark) to ${short(high)} (bright).`;
    }
    const logits = members[member][members[member].length - 1].values;
    const best = logits.indexOf(extremes(logits)[1]);
    element("alone").hidden = members.length === 1;
    element("alone").textContent = `Member ${member + 1} alone reads ${model.classNames[best]}. ${
      member < asked ? "It was asked for this picture."
        : "It was not asked: those before it were sure enough."}`;
    for (const map of document.querySelectorAll(".maps canvas"))
      /** @type {HTMLElement} */ (map).style.setProperty("--aspect", `${info.width / info.height}`);
    this.draw();
  }

  // ---- playing

  play() {
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
      const { value, max } = element("step");
      element("step").value = (value % max) + 1; // one token per press
      this.draw();
      return;
    }
    this.playing = performance.now();
    element("play").setAttribute("aria-pressed", "true");
    this.tick();
  }

  stop() {
    this.playing = 0;
    element("play").setAttribute("aria-pressed", "false");
  }

  tick() {
    if (!this.playing) return;
    const share = (performance.now() - this.playing) / PLAY_MS, steps = Number(element("step").max);
    element("step").value = Math.min(Math.floor(share * steps) + 1, steps);
    if (share >= 1) this.stop();
    this.draw();
    requestAnimationFrame(() => this.tick());
  }

  // ---- drawing

  /** Draw the three maps and the chart up to the current step. */
  draw() {
    if (!this.shown || !this.view) return;
    const { tokens, delta, residual, grid, member, layer } = this.view;
    const step = Math.min(Number(element("step").value), tokens.length), token = tokens[step - 1];
    // A second scan begins with an empty map.
    const begin = Math.floor((step - 1) / residual.length) * residual.length;
    const seen = new Map(tokens.slice(begin, step).map((each, i) => [each, delta[begin + i]]));
    this.drawOrder(element("order"), tokens.slice(begin, step));
    this.drawMap(element("delta"), seen, delta, token);
    this.drawMap(element("residual"), new Map(residual.entries()), residual, token);
    this.drawChart(element("chart"), delta, step);
    const row = Math.floor(token / grid.columns) + 1, column = (token % grid.columns) + 1;
    if (this.playing) return;
    const mean = delta.reduce((sum, value) => sum + value, 0) / delta.length;
    element("where").textContent = `Layer ${layer + 1}${this.shown.members.length > 1
      ? ` of member ${member + 1}` : ""}: token ${step} of ${tokens.length} in reading order, row ${
      row}, column ${column}. Δ = ${short(delta[step - 1])}, ${
      (delta[step - 1] / mean).toFixed(1)} times the mean of all tokens.`;
  }

  /** Draw the image and the grid; return how to draw on its cells. @param {any} canvas */
  drawImage(canvas) {
    const { context, width, height } = sharp(canvas), { rows, columns } = this.view.grid;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.image, 0, 0, width, height);
    const w = width / columns, h = height / rows;
    const corner = (/** @type {number} */ token) =>
      [(token % columns) * w, Math.floor(token / columns) * h];
    return { context, width, height, w, h, corner };
  }

  /** @param {any} canvas @param {number[]} path */
  drawOrder(canvas, path) {
    const { context, width, height, w, h, corner } = this.drawImage(canvas);
    context.strokeStyle = "rgb(255 255 255 / 0.35)";
    context.lineWidth = 1;
    context.beginPath();
    for (let x = w; x < width - 1; x += w) context.rect(x, 0, 0, height);
    for (let y = h; y < height - 1; y += h) context.rect(0, y, width, 0);
    context.stroke();
    context.strokeStyle = "#4db8f0";
    context.lineWidth = Math.max(1.5, Math.min(w, h) / 12);
    context.lineJoin = "round";
    context.beginPath();
    for (const token of path) {
      const [x, y] = corner(token);
      context.lineTo(x + w / 2, y + h / 2);
    }
    context.stroke();
    const [x, y] = corner(path[path.length - 1]);
    context.fillStyle = "#ffb000";
    context.beginPath();
    context.arc(x + w / 2, y + h / 2, Math.min(w, h) / 4, 0, 2 * Math.PI);
    context.fill();
  }

  /**
   * @param {any} canvas
   * @param {Map<number, number>} values Of the tokens that have one.
   * @param {number[]} all Values that the scale covers.
   * @param {number} current Token to mark.
   */
  drawMap(canvas, values, all, current) {
    const { context, w, h, corner } = this.drawImage(canvas);
    const [low, high] = extremes(all), span = high - low || 1;
    for (const [token, value] of values) {
      context.fillStyle = heat((value - low) / span, 0.72);
      const [x, y] = corner(token);
      context.fillRect(x, y, w + 0.5, h + 0.5);
    }
    context.strokeStyle = "#ffffff";
    context.lineWidth = 2;
    const [x, y] = corner(current);
    context.strokeRect(x + 1, y + 1, w - 2, h - 2);
  }

  /** @param {any} canvas @param {number[]} delta @param {number} step */
  drawChart(canvas, delta, step) {
    const { context, width, height } = sharp(canvas), bar = width / delta.length;
    const [low, high] = extremes(delta), span = high - low || 1;
    delta.forEach((value, i) => {
      const share = (value - low) / span, tall = 4 + share * (height - 8);
      context.fillStyle = i < step ? heat(share * 0.7 + 0.3, 1) : "rgb(128 128 128 / 0.35)";
      context.fillRect(i * bar, height - tall, Math.max(bar - 1, 0.5), tall);
    });
  }
}
