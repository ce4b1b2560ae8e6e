// Keyboard, mouse, touch and gamepad become a set of held keys and mouse counts, sent on each change and every 50 ms.

const CODES = {
  KeyW: "W", KeyA: "A", KeyS: "S", KeyD: "D", Space: "SPACE",
  ArrowLeft: "LEFT", ArrowRight: "RIGHT", ArrowUp: "UP", ArrowDown: "DOWN",
};
const REPEAT_MS = 50;
const MOUSE_MS = 16; // mice report up to 1000 times a second
const DEADZONE = 0.15;
const PAD_COUNTS = 14; // mouse counts in 16 ms at full tilt: 90 degrees a second at 0.1 degrees a count
const TOUCH_COUNTS = 2.2; // mouse counts per px of the look pad
const SECTORS = [["D"], ["S", "D"], ["S"], ["S", "A"], ["A"], ["W", "A"], ["W"], ["W", "D"]]; // of 45 degrees, from the right clockwise

export class Controls {
  /** send(keys, dx, dy, changed); onHeld(set) for the keys on the screen; onLook("locked"|"drag"|"free"). */
  constructor(stage, send, onHeld, onLook) {
    Object.assign(this, { stage, send, onHeld, onLook });
    this.enabled = false;
    this.byDevice = { keyboard: new Set(), stick: new Set(), gamepad: new Set() };
    this.sent = "";
    this.dx = this.dy = 0;
    this.dragging = false;
    this.lockDenied = false;
    this.lastSent = 0;
    this.#keyboard();
    this.#mouse();
    this.#touch(document.getElementById("stick"), (x, y) => this.#set("stick", direction(x, y)), () => this.#set("stick", []));
    this.#lookPad(document.getElementById("look"));
    setInterval(() => this.#poll(), MOUSE_MS);
  }

  setEnabled(enabled) {
    this.enabled = enabled;
    this.release();
    if (!enabled && document.pointerLockElement) document.exitPointerLock();
  }

  release() {
    Object.values(this.byDevice).forEach((keys) => keys.clear());
    this.dx = this.dy = 0;
    this.#changed();
  }

  get held() {
    return new Set(Object.values(this.byDevice).flatMap((keys) => [...keys]));
  }

  #set(device, keys) {
    this.byDevice[device] = new Set(keys);
    this.#changed();
  }

  #changed() {
    const held = this.held;
    const text = [...held].sort().join("+");
    if (text !== this.sent) this.#emit(held, text);
    this.onHeld(held);
  }

  #emit(held, text) {
    if (!this.enabled && held.size) return;
    const changed = text !== this.sent || this.dx !== 0 || this.dy !== 0;
    this.send([...held], this.dx, this.dy, changed);
    this.sent = text;
    this.dx = this.dy = 0;
    this.lastSent = performance.now();
  }

  #poll() {
    this.#gamepad();
    if (!this.enabled) return;
    if (this.dx || this.dy || performance.now() - this.lastSent >= REPEAT_MS) this.#emit(this.held, [...this.held].sort().join("+"));
  }

  #keyboard() {
    addEventListener("keydown", (event) => {
      const key = CODES[event.code];
      if (!this.enabled || !key || isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      if (event.repeat) return;
      this.byDevice.keyboard.add(key);
      this.#changed();
    });
    addEventListener("keyup", (event) => {
      const key = CODES[event.code];
      if (!key) return;
      this.byDevice.keyboard.delete(key);
      this.#changed();
    });
    addEventListener("blur", () => this.release());
  }

  #mouse() {
    this.stage.addEventListener("pointerdown", (event) => {
      if (!this.enabled || event.pointerType === "touch" || event.target.closest(".pad")) return;
      document.activeElement?.blur?.();
      if (this.lockDenied) this.#drag(true);
      else this.#lock();
    });
    addEventListener("pointerup", () => this.#drag(false));
    addEventListener("pointermove", (event) => {
      if (!this.enabled || event.pointerType === "touch") return;
      if (document.pointerLockElement !== this.stage && !this.dragging) return;
      this.dx += event.movementX;
      this.dy += event.movementY;
    });
    document.addEventListener("pointerlockchange", () => {
      this.onLook(document.pointerLockElement === this.stage ? "locked" : "free");
    });
  }

  async #lock() {
    this.#drag(true); // until the lock is granted, and where it never is
    try {
      await this.stage.requestPointerLock();
    } catch {
      this.lockDenied = true;
      this.onLook("drag");
    }
  }

  #drag(dragging) {
    this.dragging = dragging;
  }

  #touch(pad, onMove, onEnd) {
    const nub = pad.firstElementChild;
    let id = null;
    const move = (event) => {
      if (event.pointerId !== id) return;
      const box = pad.getBoundingClientRect();
      let x = (2 * (event.clientX - box.left)) / box.width - 1;
      let y = (2 * (event.clientY - box.top)) / box.height - 1;
      const length = Math.max(1, Math.hypot(x, y));
      x /= length;
      y /= length;
      nub.style.translate = `${x * 32}px ${y * 32}px`;
      onMove(x, y, event);
    };
    pad.addEventListener("pointerdown", (event) => {
      if (!this.enabled) return;
      event.preventDefault();
      id = event.pointerId;
      pad.setPointerCapture(id);
      move(event);
    });
    pad.addEventListener("pointermove", move);
    for (const end of ["pointerup", "pointercancel"]) {
      pad.addEventListener(end, (event) => {
        if (event.pointerId !== id) return;
        id = null;
        nub.style.translate = "";
        onEnd();
      });
    }
  }

  #lookPad(pad) {
    let last = null;
    const move = (_x, _y, event) => {
      if (last) {
        this.dx += TOUCH_COUNTS * (event.clientX - last.x);
        this.dy += TOUCH_COUNTS * (event.clientY - last.y);
      }
      last = { x: event.clientX, y: event.clientY };
    };
    this.#touch(pad, move, () => (last = null));
  }

  #gamepad() {
    const pad = [...(navigator.getGamepads?.() ?? [])].find((candidate) => candidate?.connected);
    if (!pad) {
      if (this.byDevice.gamepad.size) this.#set("gamepad", []);
      return;
    }
    const [x = 0, y = 0, lookX = 0, lookY = 0] = pad.axes;
    const keys = direction(x, y);
    [[12, "UP"], [13, "DOWN"], [14, "LEFT"], [15, "RIGHT"], [0, "SPACE"]].forEach(([button, key]) => {
      if (pad.buttons[button]?.pressed) keys.push(key);
    });
    if (this.enabled) {
      this.dx += PAD_COUNTS * tilt(lookX);
      this.dy += PAD_COUNTS * tilt(lookY);
    }
    if (keys.slice().sort().join() !== [...this.byDevice.gamepad].sort().join()) this.#set("gamepad", keys);
  }
}

/** Return the keys of the direction of a stick. */
export function direction(x, y) {
  if (Math.hypot(x, y) <= DEADZONE) return [];
  const sector = Math.round(Math.atan2(y, x) / (Math.PI / 4));
  return [...SECTORS[(sector + 8) % 8]];
}

function tilt(value) {
  return Math.abs(value) <= DEADZONE ? 0 : (Math.sign(value) * (Math.abs(value) - DEADZONE)) / (1 - DEADZONE);
}

export function isTyping(target) {
  return target instanceof HTMLElement && target.matches("input, textarea, select");
}
