/**
 * The logger every daemon is given. The interface is all that pure code sees; `createLogger`
 * backs it with pino (one JSON line an event), chosen in docs/decisions/0002-dependencies.md.
 */
export interface Logger {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
  child(fields: object): Logger;
}

const nothing = (): void => undefined;
/** For unit tests that do not look at the log. */
export const silentLogger: Logger = {
  debug: nothing,
  info: nothing,
  warn: nothing,
  error: nothing,
  child: () => silentLogger,
};
