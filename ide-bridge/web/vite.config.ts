// Builds the console: one page, one script, one style sheet, whose names never change: they are committed, and embedded in `aegis`.

import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [svelte({ compilerOptions: { runes: true, cssHash: ({ hash, css }) => `c-${hash(css)}` } })],
  build: {
    target: "es2022",
    outDir: "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: false,
    reportCompressedSize: false,
    rolldownOptions: { output: { entryFileNames: "console.js", assetFileNames: "console[extname]", codeSplitting: false } },
  },
});
