import { sharp } from "./colours.js";

/** Strokes on a square paper: by mouse, finger, pen or keys. */

/** Side of the paper, in the units of all strokes. */
export const PAPER = 280;
const KEY_STEP = 8;
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Ten digits as strokes: numbers x, y on a grid of 10 x 10. */
const EXAMPLES = [
  ["53 34 25 27 38 58 76 75 74 63 53"], ["43 52 58"], ["34 43 63 73 74 65 37 38 78"],
  ["33 53 64 64 55 45 55 65 66 67 58 38"], ["52 25 26 76", "63 68"],
  ["73 43 35 55 66 67 58 38", "43 73"], ["62 44 36 37 48 58 67 66 55 45 36"], ["33 73 55 48"],
  ["55 44 43 53 63 64 55 46 37 48 58 67 66 55"], ["64 55 45 34 43 53 63 64 66 58"],
];

/**
 * Draw strokes.
 * @param {CanvasRenderingContext2D} context
 * @param {Stroke[]} strokes
 * @param {number} scale Pixels per unit of the paper.
 */
function drawStrokes(context, strokes, scale) {
  context.lineCap = context.lineJoin = "round";
  for (const { points } of strokes)
    for (let i = 0; i < points.length; i++) {
      const [x, y, width] = points[i], [fromX, fromY] = points[Math.max(i - 1, 0)];
      context.lineWidth = width * scale;
      context.beginPath();
      context.moveTo(fromX * scale, fromY * scale);
      // A line of no length, which a stroke begins with, is a dot only in some browsers.
      context.lineTo(x * scale + (i ? 0 : 0.01), y * scale);
      context.stroke();
    }
}

/** @typedef {{ points: [number, number, number][] }} Stroke Points of x, y and width. */

/** The paper and what is on it: strokes, or a picture. */
export class Paper {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {() => void} onChange Called after each change.
   */
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    /** @type {Stroke[]} */
    this.strokes = [];
    /** @type {HTMLCanvasElement | null} */
    this.picture = null;
    this.thickness = 20;
    /** @type {Stroke | null} */
    this.drawing = null;
    /** Id of the pointer that is down; the others are ignored. @type {number | null} */
    this.pointer = null;
    /** The pen of the keyboard. */
    this.pen = { x: PAPER / 2, y: PAPER / 2, shown: false };
    canvas.addEventListener("pointerdown", (event) => this.pointerDown(event));
    canvas.addEventListener("pointermove", (event) => this.pointerMove(event));
    for (const end of ["pointerup", "pointercancel"])
      canvas.addEventListener(end, (event) => this.pointerUp(event));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.hidePen());
    new ResizeObserver(() => this.show()).observe(canvas);
  }

  get empty() {
    return !this.picture && !this.strokes.length;
  }

  changed() {
    this.show();
    this.onChange();
  }

  clear() {
    this.strokes = [];
    this.picture = this.drawing = null;
    this.changed();
  }

  undo() {
    this.drawing = null;
    if (this.picture) this.picture = null;
    else this.strokes.pop();
    this.changed();
  }

  /** Replace everything by a picture. @param {HTMLCanvasElement} picture */
  place(picture) {
    this.strokes = [];
    this.picture = picture;
    this.changed();
  }

  /** Replace everything by an example. @param {number} digit */
  example(digit) {
    this.picture = null;
    this.strokes = EXAMPLES[digit % EXAMPLES.length].map((text) => ({
      points: text.split(" ").map((point) =>
        [Number(point[0]) * 28, Number(point[1]) * 28, this.thickness]),
    }));
    this.changed();
  }

  // ---- pointers

  /** @param {PointerEvent} event @returns {[number, number, number]} */
  point(event) {
    const box = this.canvas.getBoundingClientRect(), unit = PAPER / box.width;
    // A mouse has a pressure of 0.5, and devices that don't know it say 0.
    const pressure = event.pointerType === "pen" ? event.pressure || 0.5 : 0.5;
    return [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit,
      this.thickness * (0.5 + pressure)];
  }

  /** @param {PointerEvent} event */
  pointerDown(event) {
    if (event.button !== 0 || this.pointer !== null) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.hidePen();
    this.pointer = event.pointerId;
    this.begin(this.point(event));
  }

  /** @param {PointerEvent} event */
  pointerMove(event) {
    if (!this.drawing || event.pointerId !== this.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) this.drawing.points.push(this.point(each));
    this.changed();
  }

  /** @param {PointerEvent} event */
  pointerUp(event) {
    if (event.pointerId === this.pointer) this.pointer = this.drawing = null;
  }

  /** @param {[number, number, number]} point */
  begin(point) {
    this.picture = null;
    this.drawing = { points: [point] };
    this.strokes.push(this.drawing);
    this.changed();
  }

  // ---- keys

  hidePen() {
    if (!this.pen.shown) return;
    this.pen.shown = false;
    this.drawing = null;
    this.show();
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const { pen } = this;
    if (event.ctrlKey || event.metaKey || event.altKey || this.pointer !== null) return;
    if (event.key in KEYS) {
      const [right, down] = KEYS[event.key];
      pen.x = Math.min(Math.max(pen.x + KEY_STEP * right, 0), PAPER);
      pen.y = Math.min(Math.max(pen.y + KEY_STEP * down, 0), PAPER);
      this.drawing?.points.push([pen.x, pen.y, this.thickness]);
      if (this.drawing) this.onChange();
    } else if (event.key !== " ") {
      return;
    } else if (!event.repeat) { // held, it repeats
      if (this.drawing) this.drawing = null;
      else this.begin([pen.x, pen.y, this.thickness]);
    }
    event.preventDefault();
    pen.shown = true;
    this.show();
  }

  // ---- pictures of it

  /** Draw the paper on the screen. */
  show() {
    const { context, width } = sharp(this.canvas), { picture, pen } = this;
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, width);
    if (this.empty && !pen.shown) {
      context.font = `${width / 12}px system-ui, sans-serif`;
      context.fillStyle = "#767676";
      context.textAlign = "center";
      context.fillText("Draw here", width / 2, width / 2);
    }
    if (picture) {
      const scale = width / Math.max(picture.width, picture.height);
      const w = picture.width * scale, h = picture.height * scale;
      context.drawImage(picture, (width - w) / 2, (width - h) / 2, w, h);
    }
    context.strokeStyle = "#1b1b22";
    drawStrokes(context, this.strokes, width / PAPER);
    if (!pen.shown) return;
    context.strokeStyle = "#0b5f8a";
    context.lineWidth = this.drawing ? 4 : 2;
    context.beginPath();
    context.arc((pen.x * width) / PAPER, (pen.y * width) / PAPER, 9, 0, 2 * Math.PI);
    context.stroke();
  }

  /**
   * Return what is on the paper as pixels.
   * @param {boolean} negative Draw strokes bright on dark.
   * @returns {ImageData}
   */
  pixels(negative) {
    let source = this.picture;
    if (!source) {
      source = document.createElement("canvas");
      source.width = source.height = PAPER;
      const context = source.getContext("2d", { willReadFrequently: true });
      context.fillStyle = negative ? "#000" : "#fff";
      context.fillRect(0, 0, PAPER, PAPER);
      context.strokeStyle = negative ? "#fff" : "#000";
      drawStrokes(context, this.strokes, 1);
    }
    return source.getContext("2d").getImageData(0, 0, source.width, source.height);
  }
}
