/**
 * The part of node-zookeeper-client (1.1.3, plain JavaScript) that session.ts uses, internals
 * included.
 */
declare module "node-zookeeper-client" {
  import type { EventEmitter } from "node:events";
  import type { Socket } from "node:net";

  /** 64-bit numbers are 8 bytes, big-endian. */
  export interface Stat {
    czxid: Buffer;
    mzxid: Buffer;
    version: number;
    cversion: number;
    ephemeralOwner: Buffer;
    numChildren: number;
  }
  export interface Server {
    host: string;
    port: number;
  }
  export interface ConnectionManager {
    servers: Server[];
    socket?: Socket;
    state: number;
    xid: number;
    pendingBuffer: Buffer | null;
    connectTimeoutHandler: NodeJS.Timeout | null;
    packetQueue: { queue: unknown[] };
    findNextServer(callback: (server: Server) => void): void;
    setState(state: number): void;
  }
  export interface TransactionResult {
    type: number;
    path?: string;
    stat?: Stat;
    err?: number;
  }
  export interface Transaction {
    ops: object[];
    commit(callback: (error: unknown, results?: TransactionResult[]) => void): void;
  }
  export interface Client extends EventEmitter {
    connectionManager: ConnectionManager;
    connect(): void;
    close(): void;
    getSessionId(): Buffer;
    getSessionTimeout(): number;
    create(
      path: string,
      data: Buffer,
      mode: number,
      callback: (error: unknown, path?: string) => void,
    ): void;
    remove(path: string, version: number, callback: (error: unknown) => void): void;
    setData(
      path: string,
      data: Buffer,
      version: number,
      callback: (error: unknown, stat?: Stat) => void,
    ): void;
    getData(
      path: string,
      watcher: (() => void) | undefined,
      callback: (error: unknown, data?: Buffer, stat?: Stat) => void,
    ): void;
    exists(
      path: string,
      watcher: (() => void) | undefined,
      callback: (error: unknown, stat?: Stat | null) => void,
    ): void;
    getChildren(
      path: string,
      watcher: (() => void) | undefined,
      callback: (error: unknown, children?: string[], stat?: Stat) => void,
    ): void;
    transaction(): Transaction;
  }
  export function createClient(
    servers: string,
    options: { sessionTimeout: number; spinDelay: number; retries: number },
  ): Client;
  export const ACL: { OPEN_ACL_UNSAFE: object[] };
  export const Exception: { create(code: number, path?: string): Error & { code: number } };
}
