import js from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config({ ignores: ["node_modules"] }, js.configs.recommended, ...tseslint.configs.strict, {
  rules: {
    // No model output, file name or error message becomes HTML.
    "no-restricted-properties": [
      "error",
      ...["innerHTML", "outerHTML", "insertAdjacentHTML", "dangerouslySetInnerHTML", "write"].map((property) => ({
        property,
        message: "Build elements instead of HTML.",
      })),
    ],
    "no-restricted-syntax": [
      "error",
      { selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']", message: "Build elements instead of HTML." },
    ],
    "@typescript-eslint/no-non-null-assertion": "error",
  },
});
