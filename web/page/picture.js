/** Pictures and models from outside: files, drops, the clipboard, the camera. */

/** Longer side of a picture that the engine gets, in pixels. */
const LONGEST = 1024;

/**
 * Return a picture as a canvas of a bounded size.
 * @param {CanvasImageSource} source
 * @param {number} width
 * @param {number} height
 * @returns {HTMLCanvasElement}
 */
function toCanvas(source, width, height) {
  const canvas = document.createElement("canvas");
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/**
 * Decode a picture file.
 * @param {File} file
 * @returns {Promise<HTMLCanvasElement>}
 */
export async function readPicture(file) {
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: not a picture that this browser can read`);
  });
  return toCanvas(bitmap, bitmap.width, bitmap.height);
}

/**
 * Pass on files that are dropped on the page or pasted into it.
 * @param {(file: File) => void} onFile
 */
export function acceptFiles(onFile) {
  const { classList } = document.body;
  addEventListener("dragover", (event) => {
    event.preventDefault();
    classList.add("dropping");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) classList.remove("dropping");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    classList.remove("dropping");
    if (event.dataTransfer.files.length) onFile(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    if (event.clipboardData?.files.length) onFile(event.clipboardData.files[0]);
  });
}

/** Switch a camera off. @param {MediaStream | null} stream */
const release = (stream) => stream?.getTracks().forEach((track) => track.stop());

/** The camera, whose pictures come one after the other until it stops. */
export class Camera {
  /** @param {(picture: HTMLCanvasElement) => void} onPicture */
  constructor(onPicture) {
    this.onPicture = onPicture;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    /** @type {MediaStream | null} */
    this.stream = null;
    /** The last start that no stop followed. @type {symbol | null} */
    this.request = null;
  }

  static get exists() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  /** Start, unless it is stopped before the user permits it. After an error, call stop. */
  async start() {
    const request = (this.request = Symbol());
    try {
      const stream = await navigator.mediaDevices.getUserMedia({
        video: { facingMode: "environment", width: 640, height: 640 },
      });
      if (request !== this.request) return release(stream);
      this.stream = this.video.srcObject = stream;
      await this.video.play();
      this.frame(request);
    } catch (error) {
      if (request === this.request) throw error;
    }
  }

  stop() {
    this.request = null;
    release(this.stream);
    this.stream = null;
  }

  /**
   * Show the square in the middle of the camera's picture, and the next one later.
   * @param {symbol} request
   */
  frame(request) {
    if (request !== this.request) return;
    const { videoWidth: width, videoHeight: height } = this.video, side = Math.min(width, height);
    if (side) {
      const square = document.createElement("canvas");
      square.width = square.height = side;
      const context = square.getContext("2d");
      context.drawImage(this.video, (side - width) / 2, (side - height) / 2);
      this.onPicture(toCanvas(square, side, side));
    }
    setTimeout(() => this.frame(request), 100);
  }
}
