// The socket: hello, messages, blocks, and a session that is resumed when the connection breaks.

const FINAL = new Set(["version", "hello", "full", "load", "replaced", "idle", "lifetime", "engine"]);
const RETRY_MS = [200, 400, 800, 1500, 3000, 3000, 3000, 5000, 5000, 5000];

export class Net {
  /** handlers: onMessage(message), onBlock(header, pictures), onStatus(text, isGood), onEnd(detail) */
  constructor(handlers) {
    this.handlers = handlers;
    this.session = sessionStorage.getItem("session") || "";
    this.rtt = 0;
    this.retries = 0;
    this.lastError = null;
    setInterval(() => this.send({ type: "ping", t: performance.now() }), 2000);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !this.socket) this.connect();
    });
  }

  connect() {
    clearTimeout(this.timer);
    const exact = new URLSearchParams(location.search).get("exact") ? "&exact=1" : "";
    const url = new URL(`ws?v=1${exact}`, location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => this.send({ type: "hello", v: 1, resume: this.session });
    socket.onmessage = (event) => (typeof event.data === "string" ? this.#text(event.data) : this.#block(event.data));
    socket.onclose = () => socket === this.socket && this.#closed();
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  /** End the session on purpose: its place becomes free at once. */
  leave() {
    this.remember("");
    const socket = this.socket;
    this.socket = null;
    socket?.close(1000);
    this.connect();
  }

  remember(session) {
    this.session = session;
    if (session) sessionStorage.setItem("session", session);
    else sessionStorage.removeItem("session");
  }

  #text(data) {
    const message = JSON.parse(data);
    if (message.type === "ready") {
      this.retries = 0;
      this.lastError = null;
      this.remember(message.session);
      this.handlers.onStatus("connected", true);
    } else if (message.type === "state") {
      this.remember(message.session);
      if (message.ping !== null) this.rtt = performance.now() - message.ping;
    } else if (message.type === "error") {
      this.lastError = message;
      if (message.id === "resume") this.remember("");
    }
    this.handlers.onMessage(message);
  }

  #block(buffer) {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let at = 4 + length;
    const pictures = header.bytes.map((size) => {
      const blob = new Blob([new Uint8Array(buffer, at, size)], { type: `image/${header.format}` });
      at += size;
      return blob;
    });
    this.handlers.onBlock(header, pictures);
  }

  #closed() {
    this.socket = null;
    const error = this.lastError;
    if (error && FINAL.has(error.id)) {
      this.remember("");
      this.handlers.onStatus("not connected", false);
      this.handlers.onEnd(error.detail);
      this.lastError = null;
      if (["idle", "lifetime", "engine"].includes(error.id)) this.connect();
      return;
    }
    if (this.retries >= RETRY_MS.length) {
      this.handlers.onStatus("not connected", false);
      this.handlers.onEnd("The server does not answer. Load the page again to try once more.");
      return;
    }
    this.handlers.onStatus("reconnecting", false);
    if (!document.hidden) this.timer = setTimeout(() => this.connect(), RETRY_MS[this.retries++]);
  }
}
