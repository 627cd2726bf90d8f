"use strict";
(() => {
  const root = document.documentElement;
  root.classList.remove("no-js");

  // --- light and dark -------------------------------------------------------------------------------------------------
  const theme = document.getElementById("theme");
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const nameTheme = () => { theme.textContent = dark() ? "Light" : "Dark"; };
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; nameTheme(); });
  nameTheme();

  // --- tables that sort ------------------------------------------------------------------------------------------------
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const value = (row) => row.cells[column].textContent;
        const rows = [...body.rows];
        const numeric = rows.every((row) => value(row) === "" || !Number.isNaN(Number(value(row))));
        const order = (a, b) => {
          if ((value(a) === "") !== (value(b) === "")) return value(a) === "" ? 1 : -1;  // what is missing comes last
          const sign = numeric ? Number(value(a)) - Number(value(b)) : value(a).localeCompare(value(b), undefined, { numeric: true });
          return down ? -sign : sign;
        };
        body.append(...rows.sort(order));
      });
    });
  }

  addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details")) one.open = true; });

  // --- cases -----------------------------------------------------------------------------------------------------------
  const source = document.getElementById("cases-data");
  if (!source) return;
  const { cases, palette } = JSON.parse(source.textContent);
  const layers = { scan: true, truth: true, prediction: true, fill: true, errors: false, entropy: false, cross: true };
  // With errors or uncertainty on, outlines are white: the classes' colours mean something else then.
  const ERROR = { missed: [86, 180, 233], spurious: [240, 110, 50], confused: [240, 228, 66] };
  const UNSURE = [255, 84, 214], PLAIN = [255, 255, 255];
  const viewers = [];

  const picture = (url) => new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a slice atlas can't be decoded"));
    image.src = url;
  });

  const pixels = (image) => {
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, canvas.width, canvas.height);
  };

  class Plane {
    constructor(viewer, spec) {
      Object.assign(this, { viewer, spec });
      this.canvas = document.createElement("canvas");
      this.canvas.tabIndex = 0;
      this.canvas.setAttribute("role", "img");
      this.slider = document.createElement("input");
      Object.assign(this.slider, { type: "range", min: 0, max: spec.slices.length - 1, step: 1 });
      this.slider.setAttribute("aria-label", `${viewer.spec.id}, ${spec.name} slice`);
      this.where = document.createElement("span");
      const caption = document.createElement("figcaption");
      caption.append(this.where, this.slider);
      this.figure = document.createElement("figure");
      this.figure.append(this.canvas, caption);
      if (spec.slices.length < 2) this.slider.hidden = true;
      this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
      this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
      this.canvas.addEventListener("keydown", (event) => this.key(event));
      this.canvas.addEventListener("pointerdown", (event) => this.point(event));
      this.turned = 0;
    }

    async load() {
      const { scan, masks, entropy } = this.spec;
      const [ground, both, unsure] = await Promise.all([scan, masks, entropy].map((url) => url && picture(url)));
      const step = Math.floor(255 / Math.max(1, this.viewer.spec.levels - 1));
      const level = (value) => Math.round(value / step);
      const read = pixels(both);
      const size = read.width * read.height;
      Object.assign(this, { ground, sheet: read.width, truth: new Uint8Array(size), prediction: new Uint8Array(size) });
      for (let i = 0; i < size; i++) {
        this.truth[i] = level(read.data[4 * i]);
        this.prediction[i] = level(read.data[4 * i + 1]);
      }
      if (unsure) {
        const heat = pixels(unsure);
        this.entropy = new Uint8Array(size);
        for (let i = 0; i < size; i++) this.entropy[i] = heat.data[4 * i];
      }
    }

    /** Number of the shown slice nearest to the point that all planes share. */
    get index() {
      const wanted = this.viewer.at[this.spec.through];
      let best = 0;
      this.spec.slices.forEach((slice, i) => {
        if (Math.abs(slice - wanted) < Math.abs(this.spec.slices[best] - wanted)) best = i;
      });
      return best;
    }

    go(index) {
      const inside = Math.min(this.spec.slices.length - 1, Math.max(0, index));
      this.viewer.at[this.spec.through] = this.spec.slices[inside];
      this.viewer.draw();
    }

    wheel(event) {
      if (event.ctrlKey) return;  // the browser's own zoom
      const before = this.index;
      const step = event.deltaY > 0 ? 1 : -1;
      const last = this.spec.slices.length - 1;
      if ((before === 0 && step < 0) || (before === last && step > 0)) { this.turned = 0; return; }  // the page scrolls on
      event.preventDefault();
      this.turned += event.deltaMode === 0 ? Math.abs(event.deltaY) : 40;
      if (this.turned < 30) return;  // a touchpad sends many small turns
      this.turned = 0;
      this.go(before + step);
    }

    key(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const far = Math.max(2, Math.round(this.spec.slices.length / 8));
      const step = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: far, PageDown: -far }[event.key];
      if (step) this.go(this.index + step);
      else if (event.key === "Home") this.go(0);
      else if (event.key === "End") this.go(this.spec.slices.length - 1);
      else return;
      event.preventDefault();
    }

    /** Part of the tile that is seen: [x, y, width, height] in its pixels. */
    get view() {
      const [width, height] = this.spec.tile;
      const zoom = this.viewer.zoom;
      const [x, y] = this.tilePoint();
      const clamp = (middle, size) => Math.min(size - size / zoom, Math.max(0, middle - size / zoom / 2));
      return [clamp(x, width), clamp(y, height), width / zoom, height / zoom];
    }

    /** Where the shared point lies in the tile, in pixels. */
    tilePoint() {
      const place = ([axis, flip, step], size) => {
        const voxel = this.viewer.at[axis];
        const count = this.viewer.spec.size[axis];
        const along = (flip ? count - 1 - voxel : voxel) / step + 0.5;
        return Math.min(size, along);
      };
      return [place(this.spec.across, this.spec.tile[0]), place(this.spec.down, this.spec.tile[1])];
    }

    point(event) {
      const box = this.canvas.getBoundingClientRect();
      const [x0, y0, width, height] = this.view;
      const set = ([axis, flip, step], along) => {
        const count = this.viewer.spec.size[axis];
        const voxel = Math.min(count - 1, Math.max(0, Math.floor(along * step)));
        this.viewer.at[axis] = flip ? count - 1 - voxel : voxel;
      };
      set(this.spec.across, x0 + (event.clientX - box.left) / box.width * width);
      set(this.spec.down, y0 + (event.clientY - box.top) / box.height * height);
      this.viewer.draw();
    }

    resize(scale) {
      const [width, height] = this.spec.tile.map((count, i) => count * this.spec.pixel[i] * scale);
      const dense = Math.min(2, devicePixelRatio || 1);
      this.canvas.style.width = `${Math.round(width)}px`;
      this.canvas.style.height = `${Math.round(height)}px`;
      this.figure.style.width = `${Math.max(150, Math.round(width))}px`;
      this.canvas.width = Math.max(1, Math.round(width * dense));
      this.canvas.height = Math.max(1, Math.round(height * dense));
      this.dense = dense;
    }

    draw() {
      const { canvas, spec } = this;
      const context = canvas.getContext("2d");
      const index = this.index;
      const [width, height] = spec.tile;
      const left = index % spec.columns * width;
      const top = Math.floor(index / spec.columns) * height;
      const [x0, y0, w, h] = this.view;
      context.fillStyle = "#000";
      context.fillRect(0, 0, canvas.width, canvas.height);
      if (this.ground && layers.scan) {
        context.imageSmoothingEnabled = !this.viewer.spec.planar || this.viewer.zoom < 3;
        context.imageSmoothingQuality = "high";
        context.drawImage(this.ground, left + x0, top + y0, w, h, 0, 0, canvas.width, canvas.height);
      }
      const over = document.createElement("canvas");
      over.width = canvas.width; over.height = canvas.height;
      over.getContext("2d").putImageData(this.overlay(left, top, x0, y0, w, h), 0, 0);
      context.drawImage(over, 0, 0);
      this.marks(context, x0, y0, w, h);
      this.slider.value = index;
      const count = spec.slices.length;
      this.where.textContent = count > 1 ? `${spec.name} ${index + 1}/${count}` : spec.name;
      this.slider.setAttribute("aria-valuetext", `${index + 1} of ${count}`);
      canvas.setAttribute("aria-label", `${this.viewer.spec.id}, ${spec.name} slice ${index + 1} of ${count}; arrow keys scroll`);
    }

    overlay(left, top, x0, y0, w, h) {
      const { width, height } = this.canvas;
      const image = new ImageData(width, height);
      const out = image.data;
      const ignored = this.viewer.spec.levels - 1;
      const reach = Math.max(1, Math.round(1.6 * this.dense));
      const across = (count, start, length, from) => Int32Array.from({ length: count + 2 * reach }, (_, i) => {
        const inside = Math.min(count - 1, Math.max(0, i - reach));
        return from + Math.floor(start + (inside + 0.5) * length / count);
      });
      const columns = across(width, x0, w, left);
      const rows = across(height, y0, h, top);
      const { truth, prediction, entropy, sheet } = this;
      const plain = layers.errors || (layers.entropy && Boolean(entropy));
      const put = (at, colour, alpha) => {  // over what is there, not premultiplied
        const old = out[at + 3] / 255;
        const sum = alpha + old * (1 - alpha);
        for (let k = 0; k < 3; k++) out[at + k] = (colour[k] * alpha + out[at + k] * old * (1 - alpha)) / sum;
        out[at + 3] = 255 * sum;
      };
      const colourOf = (label) => palette[(label - 1) % palette.length];
      const isEdge = (labels, own, i, j) =>
        labels[rows[j + reach] * sheet + columns[i]] !== own || labels[rows[j + reach] * sheet + columns[i + 2 * reach]] !== own ||
        labels[rows[j] * sheet + columns[i + reach]] !== own || labels[rows[j + 2 * reach] * sheet + columns[i + reach]] !== own;
      // A dark line outside the outline, which is seen on bright ground too.
      const near = Math.max(1, Math.round(this.dense));
      const isOther = (label, own) => label !== own && label > 0 && label !== ignored;
      const isBeside = (own, i, j) => {
        const row = rows[j + reach] * sheet, column = columns[i + reach];
        return isOther(truth[row + columns[i + reach - near]], own) || isOther(truth[row + columns[i + reach + near]], own) ||
          isOther(truth[rows[j + reach - near] * sheet + column], own) || isOther(truth[rows[j + reach + near] * sheet + column], own);
      };
      for (let j = 0; j < height; j++) {
        for (let i = 0; i < width; i++) {
          const from = rows[j + reach] * sheet + columns[i + reach];
          const t = truth[from], p = prediction[from];
          const at = 4 * (j * width + i);
          if (layers.entropy && entropy && entropy[from]) {
            const e = entropy[from] / 255;
            put(at, UNSURE, 0.85 * e);
          }
          if (t === ignored) {
            if ((i + j) % (6 * this.dense) < this.dense) put(at, [150, 150, 150], 0.8);
            continue;
          }
          if (layers.errors && t !== p) put(at, p === 0 ? ERROR.missed : t === 0 ? ERROR.spurious : ERROR.confused, 0.72);
          if (layers.prediction && p) {
            if (layers.fill && !plain) put(at, colourOf(p), 0.36);
            else if ((i + j) % (8 * this.dense) < 5 * this.dense && isEdge(prediction, p, i, j)) put(at, plain ? PLAIN : colourOf(p), 1);
          }
          if (layers.truth && t && isEdge(truth, t, i, j)) put(at, plain ? PLAIN : colourOf(t), 1);
          else if (layers.truth && isBeside(t, i, j)) put(at, [0, 0, 0], 0.6);
        }
      }
      return image;
    }

    marks(context, x0, y0, w, h) {
      const { canvas, spec, dense } = this;
      if (layers.cross && this.viewer.spec.planes.length > 1) {
        const [x, y] = this.tilePoint();
        context.strokeStyle = "rgba(255, 255, 255, .28)";
        context.lineWidth = dense;
        context.beginPath();
        const px = Math.round((x - x0) / w * canvas.width) + 0.5, py = Math.round((y - y0) / h * canvas.height) + 0.5;
        context.moveTo(px, 0); context.lineTo(px, canvas.height);
        context.moveTo(0, py); context.lineTo(canvas.width, py);
        context.stroke();
      }
      const [west, east, north, south] = spec.letters;
      context.font = `600 ${12 * dense}px system-ui, sans-serif`;
      context.fillStyle = "rgba(255, 255, 255, .86)";
      context.shadowColor = "#000"; context.shadowBlur = 3 * dense;
      const write = (text, x, y, align, base) => { context.textAlign = align; context.textBaseline = base; context.fillText(text, x, y); };
      const pad = 4 * dense;
      write(west, pad, canvas.height / 2, "left", "middle");
      write(east, canvas.width - pad, canvas.height / 2, "right", "middle");
      write(north, canvas.width / 2, pad, "center", "top");
      write(south, canvas.width / 2, canvas.height - pad, "center", "bottom");
      context.shadowBlur = 0;
    }
  }

  class Viewer {
    constructor(place, spec) {
      Object.assign(this, { place, spec, at: [...spec.point], zoom: 1 });
      this.planes = spec.planes.map((plane) => new Plane(this, plane));
    }

    async load() {
      await Promise.all(this.planes.map((plane) => plane.load()));
      this.place.replaceChildren(...this.planes.map((plane) => plane.figure));
      this.loaded = true;
      this.fit();
      this.place.dataset.loaded = "true";
    }

    fit() {
      if (!this.loaded) return;
      const room = this.place.clientWidth - 22;
      const sizes = this.planes.map(({ spec }) => spec.tile.map((count, i) => count * spec.pixel[i]));
      const gaps = 12 * (sizes.length - 1);
      const wide = sizes.reduce((sum, [width]) => sum + width, 0);
      const tall = Math.max(...sizes.map(([, height]) => height));
      // All planes at one scale where they stand side by side, so that a centimetre is one everywhere.
      const common = Math.min((room - gaps) / wide, (this.spec.planar ? 560 : 430) / tall);
      const stacked = room < 560;
      const own = ([width, height]) => {
        if (stacked) return Math.min(room / width, 420 / height);
        // A plane that would be a stamp (many thin or few thick slices) is shown larger than the others.
        return Math.max(common, Math.min(180 / Math.min(width, height), (room - gaps) / sizes.length / width, 430 / height));
      };
      this.planes.forEach((plane, i) => plane.resize(own(sizes[i])));
      this.draw();
    }

    draw() {
      if (this.loaded) for (const plane of this.planes) plane.draw();
    }

    zoomBy(factor) {
      this.zoom = Math.min(8, Math.max(1, this.zoom * factor));
      this.draw();
    }
  }

  cases.forEach((spec, i) => {
    const place = document.querySelector(`[data-case="${i}"]`);
    if (place) viewers.push(new Viewer(place, spec));
  });
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      viewers.find((viewer) => viewer.place === entry.target).load();
    }
  }, { rootMargin: "600px" });
  viewers.forEach((viewer) => watcher.observe(viewer.place));

  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => viewers.forEach((viewer) => viewer.fit()));
  });

  const section = document.getElementById("cases");
  const buttons = [...section.querySelectorAll("button[data-layer]")];
  const legends = [...section.querySelectorAll("[data-legend]")];
  const flip = (name) => {
    layers[name] = !layers[name];
    buttons.filter((button) => button.dataset.layer === name).forEach((button) => button.setAttribute("aria-pressed", layers[name]));
    for (const legend of legends) {
      legend.hidden = legend.dataset.legend === "classes" ? layers.errors || layers.entropy : !layers[legend.dataset.legend];
    }
    viewers.forEach((viewer) => viewer.draw());
  };
  buttons.forEach((button) => button.addEventListener("click", () => flip(button.dataset.layer)));
  const zoom = (factor) => viewers.forEach((viewer) => viewer.zoomBy(factor));
  for (const button of section.querySelectorAll("button[data-zoom]")) {
    button.addEventListener("click", () => zoom(Number(button.dataset.zoom)));
  }
  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const button = buttons.find((one) => one.dataset.key === event.key.toLowerCase());
    if (button) flip(button.dataset.layer);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else return;
    event.preventDefault();
  });
})();
