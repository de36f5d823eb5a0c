// Where the person is: the fragment after `#/`.

/** The page and what it is about. */
export class Place {
  page = $state("stream");
  of = $state("");

  constructor() {
    this.read();
    window.addEventListener("hashchange", () => {
      this.read();
    });
  }

  read(): void {
    const [page = "", of = ""] = location.hash.replace(/^#\/?/, "").split("/");
    this.page = page || "stream";
    this.of = decodeURIComponent(of);
  }
}
