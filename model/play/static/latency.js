// The time from an input to the first frame that it shaped, and where that time went.

const KEPT = 60; // inputs
export const PARTS = ["wait", "denoise", "decode", "encode", "network", "display"];

export class Latency {
  constructor() {
    this.clear();
  }

  clear() {
    this.pending = []; // inputs that no frame has shown yet: [seq, ms]
    this.samples = []; // {total, parts}
  }

  sent(seq, t) {
    this.pending.push([seq, t]);
    if (this.pending.length > 200) this.pending.shift();
  }

  /** Take a frame that is on the screen since `now`. Waiting is what no other part explains. */
  shown(frame, now, rtt) {
    const { header } = frame;
    const seq = header.ctl_seq[frame.index];
    while (this.pending.length && this.pending[0][0] <= seq) {
      const total = now - this.pending.shift()[1];
      const parts = { denoise: header.t_recache + header.t_denoise, decode: header.t_decode, encode: header.t_enc, network: rtt, display: now - frame.arrived };
      const known = Object.values(parts).reduce((sum, part) => sum + part, 0);
      this.samples.push({ total, parts: { wait: Math.max(0, total - known), ...parts } });
      if (this.samples.length > KEPT) this.samples.shift();
    }
  }

  quantile(q) {
    const totals = this.samples.map((sample) => sample.total).sort((a, b) => a - b);
    return totals.length ? totals[Math.min(totals.length - 1, Math.floor(q * totals.length))] : null;
  }

  means() {
    const count = this.samples.length || 1;
    return PARTS.map((part) => this.samples.reduce((sum, sample) => sum + sample.parts[part], 0) / count);
  }
}
