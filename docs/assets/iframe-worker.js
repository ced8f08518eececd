// Search in a site that is opened as a folder: browsers start no worker from file://, so an iframe runs its script.
if (location.protocol === "file:") {
  window.IFrameWorker = window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.started = new Promise((start) => { this.frame.onload = start; });
      const answer = `answer_${document.querySelectorAll("iframe").length}`;
      window[answer] = (data) => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.frame.srcdoc =
        `<script>window.postMessage = (data) => parent.${answer}(data)<\/script><script src="${url}"><\/script>`;
      document.body.append(this.frame);
    }
    postMessage(data) {
      this.started.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
