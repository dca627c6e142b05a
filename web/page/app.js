/** The page: draws, asks the engine, shows the answer. */
import { inflate, MambaError, open } from "../npm/engine.js";
import { drawPixels, element, extremes } from "./colours.js";
import { Paper } from "./draw.js";
import { Inspector } from "./inspect.js";
import { acceptFiles, Camera, readPicture } from "./picture.js";

/** Most classes that the list shows. */
const SHOWN = 12;
/** Runs after which browsers have optimised the engine. */
const WARM_UP = 30;
/** Time after which no further one of them begins. */
const WARM_UP_MS = 50;
/** A model that takes longer is not looked into while a stroke is drawn. */
const SLOW_US = 20000;
/** Least time that is measured: clocks of browsers are coarse. */
const MEASURED_MS = 1;

/** @param {number} share */
const percent = (share) => `${(100 * share).toFixed(2)} %`;

/** Show an error, or none. @param {string} [message] */
function complain(message = "") {
  element("error").textContent = message;
  element("error").hidden = !message;
}

/** The open model, and the answer to what is on the paper. */
class App {
  /** @param {any} model @param {ArrayBuffer} file */
  constructor(model, file) {
    this.builtIn = file;
    this.waiting = false;
    this.examples = 0;
    /** The timer of a look inside that is still to come. */
    this.inspecting = 0;
    this.paper = new Paper(element("paper"), () => this.later());
    this.camera = new Camera((picture) => this.paper.place(picture));
    this.inspector = new Inspector();
    this.connect();
    this.use(model, "");
  }

  /** Connect buttons, sliders and files. */
  connect() {
    const { paper } = this;
    /** @type {[string, () => void][]} */
    const buttons = [
      ["undo", () => paper.undo()],
      ["clear", () => paper.clear()],
      ["example", () => paper.example(this.examples++)],
      ["built-in", () => this.openModel(this.builtIn, "")],
      ["camera", () => this.toggleCamera()],
    ];
    for (const [id, act] of buttons)
      element(id).addEventListener("click", () => {
        complain();
        if (id !== "camera") this.stopCamera();
        act();
      });
    element("thickness").addEventListener("input", () => {
      paper.thickness = Number(element("thickness").value);
    });
    element("paper").addEventListener("pointerdown", () => this.stopCamera());
    for (const id of ["picture", "model"])
      element(id).addEventListener("change", () => {
        if (element(id).files[0]) this.take(element(id).files[0]);
        element(id).value = "";
      });
    element("camera").hidden = !Camera.exists;
    acceptFiles((file) => this.take(file));
    addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z") paper.undo();
    });
  }

  /** Take a picture or a model. @param {File} file */
  async take(file) {
    complain();
    this.stopCamera();
    try {
      if (file.type.startsWith("image/")) this.paper.place(await readPicture(file));
      else await this.openModel(await file.arrayBuffer(), file.name);
    } catch (error) {
      complain(error.message);
    }
  }

  async toggleCamera() {
    if (this.camera.request) {
      this.stopCamera();
      return;
    }
    element("camera").setAttribute("aria-pressed", "true");
    try {
      await this.camera.start();
    } catch (error) {
      this.stopCamera();
      complain(`The camera: ${error.message}`);
    }
  }

  stopCamera() {
    this.camera.stop();
    element("camera").setAttribute("aria-pressed", "false");
  }

  /** Open a model file. @param {ArrayBuffer} file @param {string} name Empty: the page's own. */
  async openModel(file, name) {
    try {
      this.use(await open(file), name);
    } catch (error) {
      throw new Error(`${name}: ${error.message}`);
    }
  }

  /** Ask this model from now on. @param {any} model @param {string} name */
  use(model, name) {
    const { info } = model;
    this.model = model;
    element("built-in").hidden = !name;
    const members = info.members > 1 ? `, ${info.members} members` : "";
    const colours = ["grey", "grey and alpha", "RGB", "RGBA"][info.channels - 1];
    element("summary").textContent = `${name || "Built-in model"}: ${
      info.parameters.toLocaleString("en")} parameters${members}, ${info.height}×${info.width} ${
      colours} pixels, ${info.n_classes} classes. Engine: C, compiled to WebAssembly (${model.isa}).`;
    element("classes").replaceChildren();
    this.answer();
    setTimeout(() => this.warmUp(model));
  }

  /** Run a small model until the browser has optimised it. @param {any} model */
  warmUp(model) {
    if (this.model !== model || model.size >= 5000) return;
    const black = new Uint8Array(model.size), end = performance.now() + WARM_UP_MS;
    try {
      for (let run = 0; run < WARM_UP && performance.now() < end; run++) model.forward(black);
    } catch (error) {
      if (!(error instanceof MambaError)) throw error; // it overflows on black
    }
  }

  /** Answer once before the next frame. */
  later() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.answer();
    });
  }

  /** Answer what is on the paper. */
  answer() {
    const { model, paper } = this;
    if (paper.empty) return this.nothing("Draw a digit.");
    try {
      const isBright = model.info.preparation === 0 && model.info.channels < 3;
      const pixels = model.prepare(paper.pixels(isBright));
      const begin = performance.now();
      let answer, runs = 0, time;
      do {
        answer = model.forward(pixels);
        runs++;
        time = performance.now() - begin;
      } while (time < MEASURED_MS);
      this.show(answer, pixels, (1000 * time) / runs);
    } catch (error) {
      if (!(error instanceof MambaError)) throw error;
      this.nothing(error.kind === "empty" ? "Nothing is drawn." : "No answer.");
      if (error.kind !== "empty") complain(error.message);
    }
  }

  /** Show that there is no answer. @param {string} words */
  nothing(words) {
    const { model } = this;
    this.say(words, true);
    element("sure").textContent = element("cost").textContent = "";
    drawPixels(element("seen"), new Uint8Array(model.size), model.info);
    this.list(new Float32Array(model.info.n_classes));
    clearTimeout(this.inspecting);
    this.inspector.show(model);
  }

  /** Show an answer. @param {any} answer @param {Uint8Array} pixels @param {number} microseconds */
  show(answer, pixels, microseconds) {
    const { model } = this, { members } = model.info;
    this.say(answer.name, false);
    element("sure").textContent = percent(answer.probabilities[answer.class]);
    element("cost").textContent = `${Math.round(microseconds)} µs${
      members > 1 ? `, ${answer.asked} of ${members} members asked` : ""}`;
    drawPixels(element("seen"), pixels, model.info);
    this.list(answer.probabilities);
    const inspect = () => this.inspector.show(model, pixels, answer.asked);
    clearTimeout(this.inspecting);
    // All members are asked for it. A large model is looked into after the last stroke only.
    const isSlow = (microseconds / answer.asked) * members >= SLOW_US;
    element("inside").setAttribute("aria-busy", String(isSlow));
    if (isSlow) this.inspecting = setTimeout(inspect, 300);
    else inspect();
  }

  /** Write the answer, which screen readers say only if it changes. */
  say(/** @type {string} */ text, /** @type {boolean} */ isWords) {
    const output = element("answer");
    output.classList.toggle("words", isWords || text.length > 8);
    if (output.textContent !== text) output.textContent = text;
    element("brief").textContent = isWords ? "" : text; // above the paper of a small screen
  }

  /** List the classes: all in their order, or the most probable of many. */
  list(/** @type {Float32Array} */ probabilities) {
    const { classNames } = this.model, all = [...probabilities.keys()];
    const best = probabilities.indexOf(extremes(probabilities)[1]);
    const chosen = all.length <= SHOWN ? all
      : all.sort((a, b) => probabilities[b] - probabilities[a]).slice(0, SHOWN);
    const rows = element("classes").children;
    while (rows.length < chosen.length) {
      const row = document.createElement("li");
      row.append(document.createElement("span"), document.createElement("span"));
      element("classes").append(row);
    }
    chosen.forEach((index, i) => {
      const [name, share] = rows[i].children;
      name.textContent = classNames[index];
      share.textContent = probabilities[best] ? percent(probabilities[index]) : "";
      rows[i].style.setProperty("--share", probabilities[index]);
      rows[i].classList.toggle("best", probabilities[best] > 0 && index === best);
    });
  }
}

/** Start the page with its own model. @param {string} packed */
export async function start(packed) {
  try {
    const file = await inflate(packed);
    new App(await open(file), file);
    document.documentElement.dataset.ready = String(Math.round(performance.now()));
  } catch (error) {
    element("summary").textContent = "";
    complain(`This browser cannot run the page: ${error.message}`);
  }
}
