// Spread the frames of a block over the time in which blocks arrive, and show each at a refresh of the display.

const EMA = 0.2;
const SNAP_MS = 500; // a gap that is no cadence: a pause, a reset, a stall
const CATCH_UP = 0.9; // frames still wait when a block arrives: the display is what is slow

export class Pacer {
  /** show(frame) draws a frame; frames have {gen, frame, bitmaps, header, arrived}. */
  constructor(show) {
    this.show = show;
    this.queue = [];
    this.gen = 0;
    this.interval = 0; // ms a block
    this.shown = 0;
    this.late = 0;
    this.#forget();
    const tick = (now) => {
      this.#tick(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  #forget() {
    this.lastArrival = 0;
    this.tail = 0; // when the last frame in the queue is due
  }

  /** Show nothing older than this generation. */
  setGeneration(gen) {
    if (gen === this.gen) return;
    this.gen = gen;
    this.queue.forEach(close);
    this.queue = [];
    this.#forget();
  }

  push(header, frames, fps) {
    if (header.gen !== this.gen) {
      frames.forEach(close);
      return;
    }
    const now = performance.now();
    const nominal = (1000 * frames.length) / fps;
    this.#measure(header, now, nominal);
    const each = this.interval / frames.length;
    let due = Math.max(now, this.tail + each);
    frames[0].early = this.tail ? this.tail + each - now : null;
    for (const frame of frames) {
      frame.due = due;
      this.queue.push(frame);
      this.tail = due;
      due += each;
    }
  }

  #measure(header, now, nominal) {
    const gap = now - this.lastArrival;
    if (!this.lastArrival || !this.interval) this.interval = nominal;
    else if (gap > SNAP_MS) {
      const made = header.t_recache + header.t_denoise + header.t_decode + header.t_enc + header.t_commit;
      this.interval = made > 0.6 * gap ? gap : nominal; // slow engine, or a pause
    } else {
      const sample = this.queue.length ? Math.min(gap, CATCH_UP * this.interval) : gap;
      this.interval += EMA * (sample - this.interval);
    }
    this.interval = Math.max(this.interval, nominal);
    this.lastArrival = now;
  }

  #tick(now) {
    let frame = null;
    while (this.queue.length && this.queue[0].due <= now + 2) {
      if (frame) {
        close(frame);
        this.late += 1;
      }
      frame = this.queue.shift();
    }
    if (!frame) return;
    this.shown += 1;
    this.show(frame, now);
    close(frame);
  }
}

function close(frame) {
  frame.bitmaps.forEach((bitmap) => bitmap.close());
}
