import { defineConfig } from "vitest/config";

export default defineConfig({
  base: "/ui/",
  build: {
    // Committed, because the wheel contains it and installing needs no Node.
    outDir: "../static",
    emptyOutDir: true,
    target: "es2022",
    // The Content-Security-Policy has no `data:` for icons, and inlined files could not be cached.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  test: { include: ["tests/**/*.test.{ts,tsx}"] },
});
