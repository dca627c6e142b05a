/** Pixels of any size: an ImageData, or bytes of 1 (grey), 2, 3 (RGB) or 4 (RGBA) channels. */
export interface Picture {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

/** An image of the model's own size, [height, width, channels]: bytes, or floats in 0..1. */
export type Image = Uint8Array | Uint8ClampedArray | Float32Array;

export interface Answer {
  /** Index of the class, and its name. */
  class: number;
  name: string;
  /** Softmax of the logits. */
  probabilities: Float32Array;
  /** Mean logits of the members that were asked. */
  logits: Float32Array;
  /** Members of the ensemble that were asked. */
  asked: number;
}

/** The result of one stage of the forward pass: mamba_trace in mamba.h lists the names. */
export interface Stage {
  name: string;
  /** -1 outside the layers. */
  layer: number;
  rows: number;
  columns: number;
  /** [rows, columns] */
  values: Float32Array;
}

/** The fields of mamba_info in mamba.h. */
export interface Info {
  height: number;
  width: number;
  channels: number;
  n_classes: number;
  /** 0 resize, 1 mnist */
  preparation: number;
  /** 0 float32, 1 int8 */
  weight_type: number;
  names_bytes: number;
  members: number;
  exit_margin: number;
  pixel_mean: number;
  pixel_std: number;
  /** 0 patch, 1 conv, 2 conv3 */
  stem: number;
  patch_height: number;
  patch_width: number;
  stem_width: number;
  d_model: number;
  n_layers: number;
  d_state: number;
  d_conv: number;
  d_inner: number;
  dt_rank: number;
  /** 0 forward, 1 alternate, 2 bidirectional, 3 cross */
  direction: number;
  /** 0 mean, 1 last */
  pool: number;
  tied_a: number;
  pos_embed: number;
  local_conv: number;
  /** Tokens per image. */
  length: number;
  norm_eps: number;
  version: number;
  crc32: number;
  parameters: number;
  file_bytes: number;
}

/** An error of the engine: what was wrong, what was got and what was expected. */
export class MambaError extends Error {
  /** The exit code that the command `mamba` has for such an error. */
  exitCode: number;
  kind: "argument" | "io" | "model" | "input" | "memory" | "empty";
}

/** Expand base64 of bytes that were deflated (raw). */
export function inflate(text: string): Promise<ArrayBuffer>;

export class Model {
  /** Instruction set of the kernels. */
  readonly isa: "simd128" | "scalar";
  /** The file's header, and the shape of the first member. */
  readonly info: Info;
  /** Header and shape of each member. */
  readonly members: Info[];
  readonly classNames: string[];
  /** Numbers of an image: height * width * channels. */
  readonly size: number;
  /** Return what the model sees of a picture. Throws MambaError "empty" if nothing is drawn. */
  prepare(picture: Picture): Uint8Array;
  /** Classify an image of the model's own size. */
  forward(image: Image): Answer;
  /** Classify a picture of any size. `pixels` is what the model sees. */
  predict(picture: Picture): Answer & { pixels: Uint8Array };
  /** Classify an image, and return every stage of each member that was asked. */
  trace(image: Image): Stage[][];
  /** The same, of which only the results of `keep` remain that are not undefined. */
  trace<Kept>(image: Image, keep: (stage: Stage) => Kept | undefined): Kept[][];
  /** Ask fewer members (a smaller margin), more, or all of them (0): 0, or 2^-126 to 1e6. */
  setExitMargin(margin: number): void;
}

/**
 * Open a model file. Throws MambaError "model" if it is not one or is damaged.
 *
 * @param options.isa The kernels; without it, the fastest that work here.
 */
export function open(
  file: ArrayBuffer | Uint8Array,
  options?: { isa?: "simd128" | "scalar" },
): Promise<Model>;
