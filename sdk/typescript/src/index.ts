/**
 * Governs functions: each call is decided by Aegis before it runs, and recorded.
 *
 *     import { govern } from "aegis-sdk";
 *     const deleteOrder = govern(rawDeleteOrder, { tool: "delete_order", server: "shop" });
 */
export { Aegis, type AegisOptions, type AskOptions } from "./client.js";
export { AegisError, ApprovalRequired, Denied, Unavailable } from "./errors.js";
export { govern, governed, type GovernOptions } from "./govern.js";
export { check, LOCAL, toolCall, type AegisEvent, type Decision, type Outcome, type Question } from "./model.js";
