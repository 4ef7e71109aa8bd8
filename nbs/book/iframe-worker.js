// A page from the file system may start no worker. There the search runs in a hidden frame, with the same words.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = Object.assign(document.createElement("iframe"), { hidden: true });
    document.body.append(frame);
    this.inside = frame.contentWindow;
    this.inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }));
    const script = Object.assign(this.inside.document.createElement("script"), { src: url });
    this.ready = new Promise(done => { script.onload = done; });
    this.inside.document.body.append(script);
  }
  postMessage(data) {
    this.ready.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
  }
};
