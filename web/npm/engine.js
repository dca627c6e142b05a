/**
 * The C engine in WebAssembly: opens a model file and classifies images.
 *
 *     const model = await open(await readFile("mnist_mamba.bin"));
 *     const { name, probabilities } = model.predict(context.getImageData(0, 0, 280, 280));
 */
import { WASM } from "./wasm.js";

/** Statuses of mamba.h, which are the exit codes of the command `mamba`. */
const OK = 0;
const ERR_MODEL = 4;
const ERR_MEMORY = 6;
const STATUS_NAMES = { 2: "argument", 3: "io", 4: "model", 5: "input", 6: "memory", 7: "empty" };

/** An error of the engine: what was wrong, what was got and what was expected. */
export class MambaError extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.name = "MambaError";
    /** The command's exit code. */
    this.exitCode = status;
    /** Kind of the error. */
    this.kind = STATUS_NAMES[status];
  }
}

// ---- the layout of mamba.h's structs, of 32-bit words ----------------------------------------

const ERROR_BYTES = 4 + 256;
const PICTURE_WORDS = 5;
const INFO_FIELDS = [
  "height", "width", "channels", "n_classes", "preparation", "weight_type", "names_bytes",
  "members", "exit_margin", "pixel_mean", "pixel_std", "stem", "patch_height", "patch_width",
  "stem_width", "d_model", "n_layers", "d_state", "d_conv", "d_inner", "dt_rank", "direction",
  "pool", "tied_a", "pos_embed", "local_conv", "length", "norm_eps", "version", "crc32",
];
const INFO_FLOATS = new Set(["exit_margin", "pixel_mean", "pixel_std", "norm_eps"]);

// ---- instances -------------------------------------------------------------------------------

/** A function that returns a vector: browsers without SIMD refuse it. */
const SIMD_PROBE = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15,
  253, 98, 11,
);

/** Bytes of the modules by name. @type {Promise<Record<string, Uint8Array>> | undefined} */
let unpacked;
/** Compiled modules by name. @type {Record<string, Promise<WebAssembly.Module>>} */
const modules = {};

/**
 * Expand base64 of deflated bytes.
 * @param {string} text
 * @returns {Promise<ArrayBuffer>}
 */
export async function inflate(text) {
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

/** Return the bytes of all modules, whose blocks are packed in turn. */
async function unpack() {
  const all = new Uint8Array(await inflate(WASM.packed)), sizes = Object.entries(WASM.sizes);
  const files = Object.fromEntries(sizes.map(([isa, size]) => [isa, new Uint8Array(size)]));
  let at = 0;
  for (let start = 0; at < all.length; start += WASM.block)
    for (const [isa, size] of sizes) {
      const length = Math.max(Math.min(size - start, WASM.block), 0);
      files[isa].set(all.subarray(at, at + length), Math.min(start, size));
      at += length;
    }
  return files;
}

/** @param {string} isa @returns {Promise<WebAssembly.Module>} */
function compiled(isa) {
  unpacked ??= unpack();
  return (modules[isa] ??= unpacked.then((files) => WebAssembly.compile(files[isa])));
}

/**
 * Write a number as C's %.*g does.
 * @param {number} value
 * @param {number} digits
 * @returns {string}
 */
function formatNumber(value, digits) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value < 0 ? "-inf" : "inf";
  const trim = (/** @type {string} */ text) =>
    text.includes(".") ? text.replace(/\.?0+$/, "") : text;
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  if (Number(exponent) < -4 || Number(exponent) >= digits)
    return `${trim(mantissa)}e${exponent[0]}${exponent.slice(1).padStart(2, "0")}`;
  return trim((Object.is(value, -0) ? "-" : "") + value.toFixed(digits - 1 - Number(exponent)));
}

/** One instance: C's memory and functions. It holds one model, and is dropped with it. */
class Instance {
  /** @param {WebAssembly.Module} module */
  constructor(module) {
    /** @type {((stage: Stage) => void) | null} */
    this.onStage = null;
    const env = {
      format_number: (/** @type {number} */ out, /** @type {number} */ value,
                      /** @type {number} */ digits) => {
        const text = formatNumber(value, digits);
        this.bytes(out, text.length).set(new TextEncoder().encode(text));
        return text.length;
      },
      trace: (/** @type {number[]} */ ...stage) => this.onStage?.(this.stage(stage)),
    };
    const { exports } = new WebAssembly.Instance(module, { env });
    /** @type {any} */
    this.c = exports;
    this.scratch = { at: 0, size: 0 };
    this.error = this.allocate(ERROR_BYTES);
    this.out = this.allocate(4);
  }

  /** Take memory that is never given back. @param {number} bytes */
  allocate(bytes) {
    const at = this.c.malloc(bytes) >>> 0;
    if (!at) throw new MambaError(ERR_MEMORY, `no memory for ${bytes} bytes`);
    return at;
  }

  /** Return memory for one call. @param {number} bytes */
  borrow(bytes) {
    if (this.scratch.size < bytes) {
      const size = Math.max(bytes, 2 * this.scratch.size);
      this.scratch = { at: this.allocate(size), size };
    }
    return this.scratch.at;
  }

  // Views of C's memory, which last until it grows.

  /** @param {number} at @param {number} n */
  bytes(at, n) {
    return new Uint8Array(this.c.memory.buffer, at >>> 0, n);
  }

  /** @param {number} at @param {number} n */
  words(at, n) {
    return new Uint32Array(this.c.memory.buffer, at >>> 0, n);
  }

  /** @param {number} at @param {number} n */
  floats(at, n) {
    return new Float32Array(this.c.memory.buffer, at >>> 0, n);
  }

  /** Return the string at `at`. @param {number} at */
  string(at) {
    const all = new Uint8Array(this.c.memory.buffer, at >>> 0);
    return new TextDecoder().decode(all.subarray(0, all.indexOf(0)));
  }

  /** Throw C's error unless a call succeeded. @param {number} status */
  check(status) {
    if (status !== OK) throw new MambaError(status, this.string(this.error + 4));
  }

  /**
   * Copy the result of a stage.
   * @param {number[]} arguments_ Those of mamba_trace.
   * @returns {Stage}
   */
  stage([, name, layer, data, rows, columns, stride]) {
    const values = new Float32Array(rows * columns);
    for (let row = 0; row < rows; row++)
      values.set(this.floats(data + 4 * row * stride, columns), row * columns);
    return { name: this.string(name), layer, rows, columns, values };
  }

  /** Read a mamba_info. @param {number} at @returns {Info} */
  info(at) {
    const words = this.words(at, INFO_FIELDS.length + 4), floats = this.floats(at, words.length);
    const info = INFO_FIELDS.map((name, i) => [name, (INFO_FLOATS.has(name) ? floats : words)[i]]);
    const long = (/** @type {number} */ i) => words[i] + words[i + 1] * 2 ** 32;
    return {
      ...Object.fromEntries(info),
      parameters: long(INFO_FIELDS.length),
      file_bytes: long(INFO_FIELDS.length + 2),
    };
  }
}

// ---- models ----------------------------------------------------------------------------------

/** An open model. */
export class Model {
  /** @param {Instance} instance @param {number} model @param {string} isa */
  constructor(instance, model, isa) {
    const { c } = instance;
    this.instance = instance;
    this.model = model;
    /** Instruction set of the kernels: "simd128" or "scalar". */
    this.isa = isa;
    /** The file's header, and the shape of the first member. */
    this.info = instance.info(c.mamba_model_info(model));
    /** Header and shape of each member. */
    this.members = Array.from({ length: this.info.members }, (_, member) =>
      instance.info(c.mamba_member_info(model, member)));
    /** Name of each class. */
    this.classNames = Array.from({ length: this.info.n_classes }, (_, index) =>
      instance.string(c.mamba_class_name(model, index)));
    const bytes = c.mamba_context_bytes(model);
    const arena = instance.allocate(bytes);
    instance.check(
      c.mamba_context_init(instance.out, model, arena, bytes, instance.error));
    this.context = instance.words(instance.out, 1)[0];
    const { height, width, channels, n_classes: classes } = this.info;
    /** Numbers of an image: height * width * channels. */
    this.size = height * width * channels;
    this.pixels = instance.allocate(4 * this.size);
    this.logits = instance.allocate(4 * classes);
    this.softmax = instance.allocate(4 * classes);
  }

  /**
   * Return what the model sees of a picture: docs/pictures.md.
   * @param {Picture} picture
   * @returns {Uint8Array} [height, width, channels]
   */
  prepare({ data, width, height }) {
    const { instance } = this, { c } = instance;
    const channels = data.length / (width * height);
    if (!Number.isInteger(channels))
      throw new MambaError(2, `picture: got ${data.length} bytes for ${width} x ${height} pixels, `
        + "expected 1 to 4 for each pixel");
    const at = instance.borrow(data.length + 4 * PICTURE_WORDS + 4);
    const pixels = at + 4 * PICTURE_WORDS;
    instance.bytes(pixels, data.length).set(data);
    instance.words(at, PICTURE_WORDS).set([pixels, width, height, channels, width * channels]);
    instance.check(c.mamba_prepare_for_model(this.model, at, this.pixels, instance.error));
    return instance.bytes(this.pixels, this.size).slice();
  }

  /**
   * Classify an image of the model's own size.
   * @param {Uint8Array | Uint8ClampedArray | Float32Array} image [height, width, channels]: bytes,
   *     or floats in 0..1.
   * @returns {Answer}
   */
  forward(image) {
    const { instance } = this, { c } = instance, classes = this.info.n_classes;
    if (image.length !== this.size)
      throw new MambaError(5, `image: got ${image.length} numbers, expected the ${this.size} of `
        + `${this.info.height} x ${this.info.width} x ${this.info.channels}`);
    const floats = image instanceof Float32Array;
    instance[floats ? "floats" : "bytes"](this.pixels, this.size).set(image);
    const forward = floats ? c.mamba_forward : c.mamba_forward_u8;
    if (forward(this.context, this.pixels, this.logits) !== OK)
      throw new MambaError(ERR_MODEL, "logits: got a NaN or infinity, expected numbers");
    c.mamba_softmax(this.logits, this.softmax, classes);
    const logits = instance.floats(this.logits, classes).slice();
    const best = logits.indexOf(Math.max(...logits));
    return {
      class: best,
      name: this.classNames[best],
      probabilities: instance.floats(this.softmax, classes).slice(),
      logits,
      asked: c.mamba_members_asked(this.context),
    };
  }

  /**
   * Classify a picture of any size.
   * @param {Picture} picture An ImageData, or any other pixels of 1 to 4 channels.
   * @returns {Answer & { pixels: Uint8Array }} `pixels` is what the model sees.
   */
  predict(picture) {
    const pixels = this.prepare(picture);
    return { ...this.forward(pixels), pixels };
  }

  /**
   * Classify an image like `forward`, and keep the result of every stage (mamba_trace in mamba.h).
   * @template Kept
   * @param {Uint8Array | Uint8ClampedArray | Float32Array} image
   * @param {(stage: Stage) => Kept | undefined} [keep] Returns what is kept of a stage; undefined:
   *     nothing. Without it, all is kept.
   * @returns {Kept[][]} Of each member that was asked.
   */
  trace(image, keep = /** @type {any} */ ((/** @type {Stage} */ stage) => stage)) {
    /** @type {Kept[][]} */
    const members = [];
    this.instance.onStage = (stage) => {
      if (stage.name === "tokens") members.push([]);
      const kept = keep(stage);
      if (kept !== undefined) members[members.length - 1].push(kept);
    };
    this.instance.c.set_trace(this.context, 1);
    try {
      this.forward(image);
    } finally {
      this.instance.c.set_trace(this.context, 0);
    }
    return members;
  }

  /**
   * Ask fewer members (a smaller margin), more, or all of them (0).
   * @param {number} margin 0, or 2^-126 to 1e6.
   */
  setExitMargin(margin) {
    const { instance } = this;
    if (margin && Math.fround(margin) === 0) // as which the engine would get it
      throw new MambaError(2, `exit_margin: got ${margin}, expected 0 or 2^-126 to 1e6`);
    instance.check(instance.c.mamba_set_exit_margin(this.model, margin, instance.error));
    this.info.exit_margin = margin;
  }
}

/**
 * Open a model file.
 * @param {ArrayBuffer | Uint8Array} file
 * @param {{ isa?: "simd128" | "scalar" }} [options] `isa` names the kernels. Without it, the
 *     fastest that work here run.
 * @returns {Promise<Model>}
 */
export async function open(file, { isa } = {}) {
  const chosen = isa ?? (WebAssembly.validate(SIMD_PROBE) ? "simd128" : "scalar");
  if (!(chosen in WASM.sizes))
    throw new MambaError(
      2, `isa: got ${chosen}, expected ${Object.keys(WASM.sizes).join(" or ")}`);
  const instance = new Instance(await compiled(chosen));
  const bytes = new Uint8Array(file);
  const at = instance.allocate(bytes.length || 1);
  instance.bytes(at, bytes.length).set(bytes);
  instance.check(
    instance.c.mamba_model_from_bytes(instance.out, at, bytes.length, instance.error));
  return new Model(instance, instance.words(instance.out, 1)[0], chosen);
}
