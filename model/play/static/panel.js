// The researcher's panel: stages of a block, pace, drift, the path from above, and what identifies the engine.

const MAX_POINTS = 2000;

export class Panel {
  constructor() {
    this.root = document.getElementById("panel");
    this.probe = new OffscreenCanvas(32, 24).getContext("2d", { willReadFrequently: true });
    this.clear();
  }

  clear() {
    this.first = null;
    this.drift = []; // [luminance, distance to frame 0], 0 to 1
    this.path = []; // [x, z, yaw in degrees]
    this.#draw();
  }

  setEngine(ready) {
    const rows = { spec: ready.spec };
    for (const engine of ready.engines) {
      const prefix = ready.engines.length > 1 ? `${engine.name}: ` : "";
      for (const [key, value] of Object.entries(engine.identity)) {
        rows[prefix + key] = typeof value === "object" ? JSON.stringify(value) : String(value);
      }
      rows[`${prefix}frames`] = `${engine.size.join(" x ")} px, ${engine.fps}/s, ${engine.block_frames} a block`;
    }
    fill(document.getElementById("p-identity"), rows);
  }

  /** Take a frame that is shown; once a block. */
  add(frame, canvas) {
    const { header } = frame;
    this.path.push(...header.poses);
    if (this.path.length > 4 * MAX_POINTS) this.path.splice(0, MAX_POINTS);
    const { width, height } = this.probe.canvas;
    this.probe.drawImage(canvas, 0, 0, width, height);
    const { data } = this.probe.getImageData(0, 0, width, height);
    this.first ??= data;
    let light = 0;
    let distance = 0;
    for (let i = 0; i < data.length; i += 4) {
      light += 0.2126 * data[i] + 0.7152 * data[i + 1] + 0.0722 * data[i + 2];
      for (let c = 0; c < 3; c++) distance += Math.abs(data[i + c] - this.first[i + c]) / 3;
    }
    const pixels = 255 * width * height;
    this.drift.push([light / pixels, distance / pixels]);
    if (this.drift.length > MAX_POINTS) this.drift.shift();
  }

  update(frame, pacer, extra) {
    if (this.root.hidden) return;
    const { header } = frame;
    document.getElementById("p-block").textContent = `${header.block}, frame ${header.frame0 + frame.index}`;
    const queued = header.t_in === null ? 0 : Math.max(0, header.t_start - header.t_in);
    this.#stages({
      input: queued, recache: header.t_recache, denoise: header.t_denoise, decode: header.t_decode, encode: header.t_enc, commit: header.t_commit,
      network: extra.rtt, display: performance.now() - frame.arrived,
    });
    fill(document.getElementById("p-pace"), {
      interval: `${pacer.interval.toFixed(0)} ms a block`,
      speed: `${((1000 * header.n) / Math.max(pacer.interval, 1)).toFixed(1)} frames/s`,
      waiting: `${pacer.queue.length} frames`,
      late: `${pacer.late} frames dropped here, ${extra.dropped} blocks on the server`,
      prompt: `${header.prompt_seq} (${header.prompt_state})`,
      inputs: `up to ${header.ctl_seq[frame.index]}`,
      seed: header.seed,
      sha256: header.sha.map((sha) => sha.slice(0, 16)).join(" "),
    });
    this.#draw();
  }

  #stages(times) {
    const longest = Math.max(1, ...Object.values(times));
    const box = document.getElementById("p-stages");
    Object.entries(times).forEach(([name, ms], i) => {
      const row = box.children[i] ?? box.appendChild(element("div", "", element("span"), element("i"), element("b")));
      row.children[0].textContent = name;
      row.children[1].style.width = `${(100 * ms) / longest}%`;
      row.children[2].textContent = `${ms.toFixed(1)} ms`;
    });
  }

  #draw() {
    if (this.root.hidden) return;
    const colours = getComputedStyle(document.documentElement);
    const [quiet, accent, line] = ["--quiet", "--accent", "--line"].map((name) => colours.getPropertyValue(name));
    const drift = clean("p-drift");
    const highest = Math.max(0.2, ...this.drift.flat());
    const latest = this.drift[this.drift.length - 1] ?? [0, 0];
    ["p-light", "p-distance"].forEach((id, column) => (document.getElementById(id).textContent = latest[column].toFixed(3)));
    [[0, quiet], [1, accent]].forEach(([column, colour]) => {
      const { width, height } = drift.canvas;
      drift.strokeStyle = colour;
      drift.lineWidth = 3;
      drift.beginPath();
      this.drift.forEach((point, i) => {
        drift.lineTo((width * i) / Math.max(1, this.drift.length - 1), height - 6 - ((height - 12) * point[column]) / highest);
      });
      drift.stroke();
    });
    this.#trail(clean("p-trail"), accent, line);
  }

  #trail(context, accent, line) {
    if (!this.path.length) return;
    const { width, height } = context.canvas;
    const xs = this.path.map((pose) => pose[0]);
    const zs = this.path.map((pose) => pose[1]);
    const [left, right, near, far] = [Math.min(...xs), Math.max(...xs), Math.min(...zs), Math.max(...zs)];
    const scale = Math.min((width - 50) / Math.max(right - left, 2), (height - 50) / Math.max(far - near, 2));
    const place = ([x, z]) => [width / 2 + scale * (x - (left + right) / 2), height / 2 - scale * (z - (near + far) / 2)];
    context.strokeStyle = line;
    context.lineWidth = 1;
    for (let i = -20; i <= 20; i++) {
      const [x, y] = [width / 2 + scale * i, height / 2 + scale * i];
      context.strokeRect(x, -1, 0, height + 2);
      context.strokeRect(-1, y, width + 2, 0);
    }
    context.strokeStyle = context.fillStyle = accent;
    context.lineWidth = 4;
    context.lineJoin = "round";
    context.beginPath();
    this.path.forEach((pose) => context.lineTo(...place(pose)));
    context.stroke();
    const last = this.path[this.path.length - 1];
    const [x, y] = place(last);
    context.translate(x, y);
    context.rotate((last[2] * Math.PI) / 180);
    context.beginPath();
    [[0, -20], [10, 9], [-10, 9]].forEach((corner) => context.lineTo(...corner));
    context.fill();
    context.resetTransform();
  }
}

function clean(id) {
  const context = document.getElementById(id).getContext("2d");
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  return context;
}

export function element(name, className = "", ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

function fill(list, rows) {
  const keys = Object.keys(rows);
  if (list.childElementCount !== 2 * keys.length) {
    list.replaceChildren(...keys.flatMap((key) => [element("dt", "", key), element("dd")]));
  }
  keys.forEach((key, i) => {
    list.children[2 * i].textContent = key;
    list.children[2 * i + 1].textContent = rows[key];
  });
}
