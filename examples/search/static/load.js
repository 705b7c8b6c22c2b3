// Load from the page: so many questions in flight for so many seconds, then it ends by itself.
//
// A browser opens six connections to one address. The load takes four, so that polls and searches get through, and more
// questions than requests are in flight because a request carries several.

const REQUESTS = 4;
const PAUSE = 200; // milliseconds before a question that was refused is asked again

const WHAT = ["wrap", "parse", "compress", "sort", "copy", "open", "encode", "merge", "escape", "compare", "read", "close"];
const WHICH = ["text to a width", "a file", "JSON", "a date", "a socket", "a queue", "an e-mail", "numbers", "a path"];

export class Load {
  #form;
  #told;
  #running = null; // an AbortController while it runs
  #asked = 0;

  constructor(form, told) {
    this.#form = form;
    this.#told = told;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#running) this.stop();
      else this.#fire(Number(form.elements.waiting.value), Number(form.elements.seconds.value));
    });
  }

  stop() {
    this.#running?.abort();
  }

  async #fire(waiting, seconds) {
    const running = (this.#running = new AbortController());
    const begun = performance.now();
    const count = { answered: 0, refused: 0 };
    const button = this.#form.querySelector("button");
    button.textContent = "Stop";
    const tell = () => {
      const gone = (performance.now() - begun) / 1000;
      const refused = count.refused ? `, ${count.refused} refused` : "";
      this.#told.textContent = `${count.answered} answered, ${(count.answered / gone).toFixed(0)}/s${refused}`;
    };
    const telling = setInterval(tell, 250);
    const ending = setTimeout(() => running.abort(), seconds * 1000);
    try {
      await Promise.all(shares(waiting).map((share) => this.#keepAsking(share, running, count)));
      tell();
    } catch (error) {
      running.abort();
      this.#told.textContent = `Load has ended: ${error.message}`;
    } finally {
      clearInterval(telling);
      clearTimeout(ending);
      button.textContent = "Fire load";
      this.#running = null;
    }
  }

  async #keepAsking(share, running, count) {
    while (!running.signal.aborted) {
      const query = new URLSearchParams([["k", "1"], ...Array.from({ length: share }, () => ["q", this.#question()])]);
      // What was asked is waited for: an answer that is dropped is work for nothing.
      const response = await fetch(`/search_many?${query}`);
      await response.arrayBuffer();
      count[response.ok ? "answered" : "refused"] += share;
      if (response.status === 503) await new Promise((resume) => setTimeout(resume, PAUSE));
      else if (!response.ok) throw new Error(`status ${response.status}`);
    }
  }

  #question() {
    const at = this.#asked++;
    return `${WHAT[at % WHAT.length]} ${WHICH[Math.floor(at / WHAT.length) % WHICH.length]}`;
  }
}

// How many questions each request carries, for as many requests as there is work for.
function shares(waiting) {
  const requests = Math.min(REQUESTS, waiting);
  return Array.from({ length: requests }, (_, at) => Math.floor((waiting + at) / requests));
}
