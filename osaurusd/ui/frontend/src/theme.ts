/** Light, dark, or as the system. */

import { signal } from "@preact/signals";

const ITEM = "osaurus-theme";
const THEMES = ["system", "light", "dark"] as const;
export type Theme = (typeof THEMES)[number];

export const theme = signal<Theme>(stored());

export function applyTheme(): void {
  if (theme.value === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme.value;
}

export function nextTheme(): void {
  theme.value = THEMES[(THEMES.indexOf(theme.value) + 1) % THEMES.length] ?? "system";
  localStorage.setItem(ITEM, theme.value);
  applyTheme();
}

function stored(): Theme {
  const value = localStorage.getItem(ITEM);
  return THEMES.find((each) => each === value) ?? "system";
}
