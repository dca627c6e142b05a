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

/** The camera, whose pictures come one after the other until it stops. */
export class Camera {
  /** @param {(picture: HTMLCanvasElement) => void} onPicture */
  constructor(onPicture) {
    this.onPicture = onPicture;
    this.video = document.createElement("video");
    this.video.muted = this.video.playsInline = true;
    /** @type {MediaStream | null} */
    this.stream = null;
  }

  static get exists() {
    return Boolean(navigator.mediaDevices?.getUserMedia);
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: 640, height: 640 },
    });
    this.video.srcObject = this.stream;
    await this.video.play();
    this.frame();
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.stream = null;
  }

  /** Show the square in the middle of the camera's picture, and the next one later. */
  frame() {
    if (!this.stream) return;
    const { videoWidth: width, videoHeight: height } = this.video, side = Math.min(width, height);
    if (side) {
      const square = document.createElement("canvas");
      square.width = square.height = side;
      const context = square.getContext("2d");
      context.drawImage(this.video, (side - width) / 2, (side - height) / 2);
      this.onPicture(toCanvas(square, side, side));
    }
    setTimeout(() => this.frame(), 100);
  }
}
