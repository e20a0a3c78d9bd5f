/** React as the host gives it: Airflow sets it as a global, and so does standalone.js. */

const React = globalThis.React;

export const { useCallback, useEffect, useId, useRef, useState } = React;
export const h = React.createElement;
export const Fragment = React.Fragment;
export const Component = React.Component;
