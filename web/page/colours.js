/** Shared by all parts of the page: its elements, colours of heat maps, pictures of pixels. */

/** @param {string} id @returns {any} */
export const element = (id) => document.getElementById(id);

/** From little to much: dark violet, red, yellow. */
const HEAT = [[24, 12, 58], [101, 21, 110], [187, 55, 84], [249, 142, 9], [252, 255, 164]];

/**
 * Return a CSS colour of the scale.
 * @param {number} share From 0 to 1.
 * @param {number} alpha
 * @returns {string}
 */
export function heat(share, alpha) {
  const at = Math.min(Math.max(share, 0), 1) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  const mixed = HEAT[low].map((value, i) => value + (at - low) * (HEAT[low + 1][i] - value));
  return `rgb(${mixed.map(Math.round).join(" ")} / ${alpha})`;
}

/**
 * Draw a model's pixels on a canvas of as many pixels.
 * @param {HTMLCanvasElement} canvas
 * @param {Uint8Array} pixels [height, width, channels]
 * @param {import("../npm/engine.js").Info} info
 */
export function drawPixels(canvas, pixels, { height, width, channels }) {
  const image = new ImageData(width, height);
  for (let i = 0; i < height * width; i++) {
    const pixel = pixels.subarray(i * channels, (i + 1) * channels);
    const [red, green, blue] = channels > 2 ? pixel : [pixel[0], pixel[0], pixel[0]];
    image.data.set([red, green, blue, channels % 2 ? 255 : pixel[channels - 1]], 4 * i);
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Give a canvas the pixels of the screen, and return its context in CSS pixels.
 * @param {HTMLCanvasElement} canvas
 * @returns {{ context: CanvasRenderingContext2D, width: number, height: number }}
 */
export function sharp(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas, ratio = devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return { context, width, height };
}

/**
 * Return the least and the greatest of many numbers: more than Math.min takes arguments.
 * @param {ArrayLike<number>} values
 * @returns {[number, number]}
 */
export function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (let i = 0; i < values.length; i++) {
    low = Math.min(low, values[i]);
    high = Math.max(high, values[i]);
  }
  return [low, high];
}
