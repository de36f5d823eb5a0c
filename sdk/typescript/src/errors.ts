/** Why a function was not run. Every one of these means that it was not. */
export class AegisError extends Error {
  override name = "AegisError";
}

/** What names a decision and its record. */
export interface Recorded {
  readonly decisionId?: string | undefined;
  /** The place of the record in the ledger. */
  readonly index?: number | undefined;
}

/** Aegis refused the action, and recorded that. */
export class Denied extends AegisError {
  override name = "Denied";
  /** The stable code. */
  readonly reason: string;
  /** One sentence for people and models. It never quotes arguments. */
  readonly sentence: string;
  readonly decisionId: string | undefined;
  readonly index: number | undefined;

  constructor(reason: string, sentence: string, recorded: Recorded = {}) {
    super(`${sentence} (${reason})`);
    this.reason = reason;
    this.sentence = sentence;
    this.decisionId = recorded.decisionId;
    this.index = recorded.index;
  }
}

/** A human must agree first. The same call, once that has happened, is allowed once. */
export class ApprovalRequired extends AegisError {
  override name = "ApprovalRequired";
  /** What `aegis approvals` knows it by. */
  readonly approval: string;
  readonly reason: string;
  readonly sentence: string;
  readonly decisionId: string | undefined;
  readonly index: number | undefined;

  constructor(approval: string, reason: string, sentence: string, recorded: Recorded = {}) {
    super(`${sentence} Approval ${approval} is awaited (${reason})`);
    this.approval = approval;
    this.reason = reason;
    this.sentence = sentence;
    this.decisionId = recorded.decisionId;
    this.index = recorded.index;
  }
}

/** The daemon could not be asked, so nobody has allowed anything. */
export class Unavailable extends AegisError {
  override name = "Unavailable";
}
