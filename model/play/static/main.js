// The page: choose a start, play, change the prompt, look back.

import { Controls, isTyping } from "./controls.js";
import { Latency, PARTS } from "./latency.js";
import { Net } from "./net.js";
import { Pacer } from "./pacer.js";
import { element, Panel } from "./panel.js";

const $ = (id) => document.getElementById(id);
const SHADES = ["#3c434c", "#7cd0b4", "#4f9d86", "#2f6c5c", "#8e969f", "#5c646d"]; // of the parts of the latency
const UPLOAD_PX = 1280; // longer side of a picture that is sent
const LATENCY_EVERY_MS = 250;
const HINT_MS = 6000;

let ready = null;
let state = null;
let blockChain = Promise.resolve(); // blocks are decoded in the order in which they come
let lastStart = JSON.parse(sessionStorage.getItem("start") || "null");
let controlSeq = 0;
let promptSeq = 0;
let lastBlock = -1;
let latencyAt = 0;
const promptTimes = new Map(); // seq to the time when it was queued, then to the milliseconds until it was seen

const latency = new Latency();
const panel = new Panel();
const pacer = new Pacer(showFrame);
const net = new Net({ onMessage, onBlock, onStatus, onEnd });
const controls = new Controls($("stage"), sendControl, showKeys, showLook);

// What the tests and the curious can read.
window.gamecraft = { pacer, latency, net, get state() { return state; }, get ready() { return ready; }, shown: null };

// Messages

function onMessage(message) {
  if (message.type === "ready") onReady(message);
  else if (message.type === "state") onState(message);
  else if (message.type === "stage") onStage(message);
  else if (message.type === "busy") {
    notice(`All places are taken. You are number ${message.queue} in the queue; at the latest it is your turn in ${minutes(message.eta)}.`);
  } else if (message.type === "error") onError(message);
}

function onReady(message) {
  ready = message;
  controlSeq = promptSeq = 0;
  const { engines } = ready;
  $("engine").textContent = engines.map((engine) => engine.name).join(" and ");
  $("which-box").hidden = engines.length < 2;
  const choices = [...engines.map((engine) => [engine.name, engine.name]), ["*", "side by side"]];
  if ($("which").childElementCount !== choices.length) {
    $("which").replaceChildren(...choices.map(([value, text]) => Object.assign(element("option", "", text), { value })));
  }
  $("space-key").hidden = !engines[0].control.jump_speed;
  $("presets").replaceChildren(...engines[0].prompts.map((text) => button(text, () => queuePrompt(text))));
  panel.setEngine(ready);
  $("status").classList.add("good");
  if (message.resumed) enterPlay(message.gen);
  else {
    if (document.body.dataset.view === "play") leavePlay();
    showStarts();
  }
}

function onState(message) {
  const began = message.gen !== pacer.gen;
  state = message;
  if (began || document.body.dataset.view !== "play") enterPlay(message.gen);
  if (document.activeElement !== $("seed")) $("seed").value = message.seed;
  $("pause").textContent = message.paused ? "continue" : "pause";
  veil(message.paused === "user" ? "paused" : message.paused ? "waiting for this page" : message.block < 0 ? "starting" : "");
  $("save-record").href = `sessions/${message.session}/record.gcplay`;
  promptSeq = Math.max(promptSeq, ...message.prompts.map((prompt) => prompt.seq));
  showPrompts();
}

function onStage(message) {
  const percent = message.pct === null ? "" : ` ${message.pct.toFixed(0)} %`;
  if (message.id === "video") $("cinema-text").textContent = `Replaying the session from its record${percent}`;
  else if (message.id === "start") veil("starting");
  else if (message.id !== "done") {
    onStatus(`${message.id === "load" ? "loading the world" : "warming up"}${percent}`, false);
    notice(message.detail || "The world is loading; it takes a moment.");
  }
}

function onError(message) {
  if (message.id === "rate") return;
  toast(message.detail);
  if (message.id === "resume") leavePlay();
}

function onStatus(text, isGood) {
  $("status").textContent = text;
  $("status").classList.toggle("good", isGood);
  if (!isGood) controls.release();
}

function onEnd(detail) {
  leavePlay();
  notice(detail);
}

function onBlock(header, pictures) {
  const arrived = performance.now();
  if (header.gen !== pacer.gen) return;
  blockChain = blockChain.then(async () => {
    const bitmaps = await Promise.all(pictures.map((picture) => createImageBitmap(picture)));
    const frames = Array.from({ length: header.n }, (_, index) => ({
      header, index, arrived, frame: header.frame0 + index, bitmaps: header.engines.map((_name, e) => bitmaps[e * header.n + index]),
    }));
    pacer.push(header, frames, ready.engines[0].fps);
  }).catch((error) => console.error("a block cannot be shown:", error));
}

// Frames

function showFrame(frame, now) {
  const { header } = frame;
  const views = viewsFor(header.engines, frame.bitmaps);
  frame.bitmaps.forEach((bitmap, i) => views[i].getContext("2d").drawImage(bitmap, 0, 0));
  net.send({ type: "ack", gen: header.gen, frame: frame.frame, t_shown: now, early: frame.early ?? null });
  latency.shown(frame, now, net.rtt);
  window.gamecraft.shown = { gen: header.gen, frame: frame.frame, block: header.block, ctl_seq: header.ctl_seq[frame.index] };
  const prompt = promptTimes.get(header.prompt_seq);
  if (prompt && !prompt.seen) {
    prompt.seen = now - prompt.queued;
    showPrompts();
  }
  if (!state?.paused) veil("");
  if (header.block !== lastBlock) {
    lastBlock = header.block;
    panel.add(frame, views[0]);
    panel.update(frame, pacer, { rtt: net.rtt, dropped: state?.dropped ?? 0 });
  }
  if (now - latencyAt > LATENCY_EVERY_MS) {
    latencyAt = now;
    showLatency();
  }
}

/** Return a canvas for each engine; make them where engines or sizes have changed. */
function viewsFor(names, bitmaps) {
  const sizes = bitmaps.map((bitmap) => `${bitmap.width}x${bitmap.height}`);
  const key = names.map((name, i) => `${name}:${sizes[i]}`).join();
  const box = $("views");
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren(...names.map((name, i) => {
      const canvas = element("canvas");
      canvas.width = bitmaps[i].width;
      canvas.height = bitmaps[i].height;
      return element("figure", "", canvas, ...(names.length > 1 ? [element("figcaption", "", name)] : []));
    }));
    fit();
  }
  return [...box.querySelectorAll("canvas")];
}

/** Scale pictures by halves where there is room, so that pixels stay even; below their own size, to the width. */
function fit() {
  const canvases = [...$("views").querySelectorAll("canvas")];
  if (!canvases.length) return;
  const isFull = document.fullscreenElement === $("stage");
  const isNarrow = innerWidth <= 700;
  const across = isNarrow ? 1 : canvases.length;
  const width = ($("stage").clientWidth - 4 * (across - 1)) / across;
  const height = isFull ? innerHeight : isNarrow ? 0.5 * innerHeight : Math.max(0.6 * innerHeight, innerHeight - 205);
  for (const canvas of canvases) {
    const most = Math.min(width / canvas.width, (height * (isNarrow ? 1 / canvases.length : 1)) / canvas.height);
    const scale = isNarrow || most < 1 ? most : Math.floor(most * 2) / 2;
    canvas.style.width = `${Math.round(canvas.width * scale)}px`;
    canvas.style.height = `${Math.round(canvas.height * scale)}px`;
  }
}

function showLatency() {
  const [median, high] = [latency.quantile(0.5), latency.quantile(0.95)];
  if (median === null) return;
  const times = document.createElement("b");
  times.textContent = `${median.toFixed(0)} ms`;
  $("latency-text").replaceChildren("input to picture ", times, ` (p50), ${high.toFixed(0)} ms (p95)`);
  const means = latency.means();
  const total = means.reduce((sum, mean) => sum + mean, 0) || 1;
  $("latency-bar").replaceChildren(...means.map((mean, i) => styled("i", { width: `${(100 * mean) / total}%`, background: SHADES[i] })));
  $("latency-legend").replaceChildren(...means.map((mean, i) => {
    const entry = element("span", "", `${PARTS[i]} ${mean.toFixed(0)}`);
    entry.style.setProperty("--shade", SHADES[i]);
    return entry;
  }));
}

// Inputs

function sendControl(keys, dx, dy, changed) {
  if (!state) return;
  controlSeq += 1;
  const t = performance.now();
  if (changed) latency.sent(controlSeq, t);
  net.send({ type: "ctl", seq: controlSeq, t, keys, dx, dy });
}

function showKeys(held) {
  document.querySelectorAll("kbd[data-key]").forEach((key) => key.classList.toggle("on", held.has(key.dataset.key)));
}

function showLook(how) {
  if (how === "locked") hint("Esc gives the mouse back");
  else if (how === "drag") hint("the mouse cannot be locked here: drag on the picture to look around");
  else hint("");
}

addEventListener("keydown", (event) => {
  if (document.body.dataset.view !== "play") return;
  if (event.target === $("prompt") || isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || $("cinema").open) return;
  if (event.key === "Enter" && !(event.target instanceof HTMLButtonElement)) {
    event.preventDefault();
    $("prompt").focus();
  }
  const pressed = { KeyP: "pause", KeyO: "step", KeyR: "reset", KeyF: "full" }[event.code];
  if (pressed) $(pressed).click();
});

// Choose

async function showStarts() {
  notice("");
  const starts = await (await fetch("starts")).json();
  $("starts").replaceChildren(...starts.slice(0, 6).map(({ name, url }) => {
    const picture = Object.assign(element("img"), { src: url, alt: "", draggable: false });
    const card = button("", () => start({ preset: name }));
    card.className = "card";
    card.append(picture, element("span", "label", name));
    return card;
  }));
  showAttract();
}

async function showAttract() {
  if ($("attract-video").src || document.body.dataset.view !== "choose") return;
  const response = await fetch("attract.mp4");
  if (response.status === 204) return;
  if (!response.ok) {
    if (response.status === 503) setTimeout(showAttract, 2000); // it is being replayed
    return;
  }
  $("attract-video").src = URL.createObjectURL(await response.blob());
  $("attract-video").play().catch(() => {});
  $("attract").hidden = false;
  $("choose").classList.add("with-attract");
}

function start(choice) {
  if (!ready) return toast("The world is still loading.");
  lastStart = { ...choice };
  sessionStorage.setItem("start", JSON.stringify({ preset: choice.preset ?? "", isOwn: !choice.preset }));
  const which = $("which").value;
  const engines = which === "*" ? ready.engines.map((engine) => engine.name) : which ? [which] : [];
  net.send({ type: "start", prompt: "", seed: Number($("seed").value) || 0, engines, spec: ready.spec, ...choice });
}

async function startFromFile(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, UPLOAD_PX / Math.max(bitmap.width, bitmap.height));
    const canvas = new OffscreenCanvas(Math.round(bitmap.width * scale), Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
    const image = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result.split(",")[1]);
      reader.readAsDataURL(blob);
    });
    start({ image });
  } catch {
    toast("This file is not a picture that the browser reads.");
  }
}

function enterPlay(gen) {
  if (gen !== pacer.gen) {
    pacer.setGeneration(gen);
    latency.clear();
    panel.clear();
    promptTimes.clear();
    promptSeq = 0;
    lastBlock = -1;
  }
  if (document.body.dataset.view === "play") return;
  document.body.dataset.view = "play";
  $("attract-video").pause();
  controls.setEnabled(true);
  fit();
  hint("W A S D to walk, click the picture to look with the mouse", HINT_MS);
}

function leavePlay() {
  if (document.body.dataset.view !== "play") return;
  document.body.dataset.view = "choose";
  controls.setEnabled(false);
  state = null;
  pacer.setGeneration(0);
  $("views").dataset.key = "";
  $("views").replaceChildren();
  $("attract-video").play().catch(() => {});
  if (document.fullscreenElement) document.exitFullscreen();
}

// Prompts

function queuePrompt(text) {
  if (!text.trim() || !state) return;
  promptSeq += 1;
  promptTimes.set(promptSeq, { queued: performance.now(), seen: 0 });
  net.send({ type: "prompt", seq: promptSeq, text, blend_blocks: Number($("blend").value) });
}

function showPrompts() {
  const rows = (state?.prompts ?? []).slice(-5).reverse().map((prompt) => {
    const seen = promptTimes.get(prompt.seq)?.seen;
    const text = {
      queued: "queued",
      recached: `recached, next block ${prompt.block}`,
      active: `active since block ${prompt.block}${seen ? `, seen after ${(seen / 1000).toFixed(1)} s` : ""}`,
      refused: prompt.detail,
    }[prompt.state];
    return element("li", prompt.state, element("span", "", prompt.text), element("span", "state", text));
  });
  $("prompts").replaceChildren(...rows);
}

// Look back

async function showVideo(request) {
  $("cinema-text").textContent = "Replaying from the record";
  $("cinema-video").hidden = $("cinema-save").hidden = true;
  $("cinema").showModal();
  controls.setEnabled(false);
  const response = await request();
  if (!response.ok) {
    $("cinema-text").textContent = (await response.json()).error;
    return;
  }
  const url = URL.createObjectURL(await response.blob());
  $("cinema-text").textContent = "Made again from the record; every frame was compared with the session's.";
  $("cinema-video").src = $("cinema-save").href = url;
  $("cinema-video").hidden = $("cinema-save").hidden = false;
  $("cinema-video").play().catch(() => {});
}

$("cinema").addEventListener("close", () => {
  URL.revokeObjectURL($("cinema-video").src);
  $("cinema-video").removeAttribute("src");
  controls.setEnabled(document.body.dataset.view === "play");
});

function sessionVideo() {
  net.send({ type: "pause" });
  showVideo(() => fetch(`sessions/${net.session}/video.mp4`));
}

async function copyCommand() {
  const response = await fetch(`sessions/${net.session}/rollout`);
  const played = await response.json();
  if (!response.ok) return toast(played.error);
  const quote = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
  const engine = ready.engines[0].name;
  const image = lastStart?.preset || "FILE";
  const prompt = played.prompt ? ` --prompt ${quote(played.prompt)}` : "";
  const command = `gamecraft rollout ${quote(engine)} --image ${quote(image)} --keys ${quote(played.keys)}${prompt} --seed ${played.seed}`;
  window.gamecraft.command = command;
  const remark = played.prompt_changes ? "; the prompt changed on the way, which only the record holds" : "";
  try {
    await navigator.clipboard.writeText(command);
    toast(`copied${remark}`);
  } catch {
    window.prompt("Copy this command:", command);
  }
  return null;
}

// Small things

function veil(text) {
  $("veil").hidden = !text;
  $("veil-text").textContent = text;
}

let hintTimer = 0;
function hint(text, forMs = 0) {
  clearTimeout(hintTimer);
  $("hint").textContent = text;
  $("hint").hidden = !text;
  if (forMs) hintTimer = setTimeout(() => hint(""), forMs);
}

function notice(text) {
  $("queue").textContent = text;
  $("queue").hidden = !text;
}

let toastTimer = 0;
function toast(text) {
  clearTimeout(toastTimer);
  $("toast").textContent = text;
  $("toast").hidden = false;
  toastTimer = setTimeout(() => ($("toast").hidden = true), 4000);
}

function button(text, onClick) {
  const made = element("button", "", text);
  made.type = "button";
  made.addEventListener("click", () => {
    made.blur();
    onClick();
  });
  return made;
}

function styled(name, style) {
  const made = element(name);
  Object.assign(made.style, style);
  return made;
}

function minutes(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.ceil(seconds / 60)} minutes`;
}

function onClick(id, action) {
  $(id).addEventListener("click", () => {
    $(id).blur();
    action();
  });
}

onClick("pause", () => net.send({ type: state?.paused ? "resume" : "pause" }));
onClick("step", () => net.send({ type: "step" }));
onClick("reset", () => net.send({ type: "reset", seed: Math.min(2 ** 31 - 1, Math.max(0, Math.floor(Number($("seed").value) || 0))) }));
onClick("replay", sessionVideo);
onClick("copy", copyCommand);
onClick("full", () => (document.fullscreenElement ? document.exitFullscreen() : $("stage").requestFullscreen().catch(() => {})));
onClick("leave", () => {
  leavePlay();
  net.leave();
});
onClick("panel-toggle", () => {
  $("panel").hidden = !$("panel").hidden;
  $("panel-toggle").setAttribute("aria-expanded", String(!$("panel").hidden));
  fit();
  if (innerWidth <= 700 && !$("panel").hidden) $("panel").scrollIntoView({ behavior: "smooth" });
});
onClick("cinema-close", () => $("cinema").close());
onClick("attract", () => start({ preset: ready?.starts[0] ?? "" }));
$("seed").addEventListener("change", () => $("seed").blur());
$("which").addEventListener("change", () => {
  $("which").blur();
  if (state && lastStart && !lastStart.isOwn) start(lastStart);
});
$("upload").addEventListener("change", (event) => event.target.files[0] && startFromFile(event.target.files[0]));
$("open-record").addEventListener("change", (event) => {
  const file = event.target.files[0];
  if (file) showVideo(() => fetch("replays", { method: "POST", body: file }));
  event.target.value = "";
});
$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  queuePrompt($("prompt").value);
  $("prompt").value = "";
  $("prompt").blur();
});
addEventListener("resize", fit);
document.addEventListener("fullscreenchange", fit);
if (matchMedia("(pointer: coarse)").matches) {
  document.body.classList.add("touch");
  $("stage").classList.add("has-pads");
}

net.connect();
